"""What the gate is given: counts of the registered versions, kept while nothing changes; nothing of sealed groups."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.environment import tracking_uri
from segmill import tracking
from segmill.data.ingest.builtin import write_street
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import SegmillError
from segmill.evaluation.scoring import evaluate, read_counts
from segmill.params import Params, read_params
from segmill.params_change import set_params
from segmill.promotion import registry
from segmill.promotion.budget import group_id
from segmill.promotion.keys import make_signing_key
from segmill.promotion.ledger import Ledger, workspace_ledger
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.workspace import Workspace
from tasks.judging import Case, gate_state, judge, measured_since, predictions_of
from tasks.register import model_name

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("joined")]


@pytest.fixture(scope="module")
def packed(judging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with manifest and packed splits of 20 sequences, four each in val and test; and evaluate's counts."""
    root = tmp_path_factory.mktemp("packed")
    write_street(root / "raw", count=200, size=(64, 64), seed=1)
    validate_dataset(root / "raw", root / "manifest.parquet", shares=SplitShares(0.2, 0.2, 0))
    pack(root / "raw", root / "manifest.parquet", root / "packed")
    evaluate(judging / "ensemble", root / "packed", root / "reports")
    return root


@pytest.fixture(scope="module")
def template(
    _street_workspace: Workspace, packed: Path, judging: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A workspace whose registry holds versions 1 and 2, which predict the same; 1 serves. Copy it.

    What both predict on val and test is kept in it, as by a run before.
    """
    root = tmp_path_factory.mktemp("registered") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    params = read_params(workspace.params)
    set_up(root)
    shutil.copytree(packed / "packed", workspace.packed)
    shutil.copytree(packed / "reports", workspace.reports)
    shutil.copy(packed / "manifest.parquet", workspace.manifest)
    uri, name, key = tracking_uri(workspace, params), model_name(workspace, params), make_signing_key()
    run_id = tracking.start_run(uri, name, "retrain", artifacts=(root / "mlartifacts").as_uri())
    for number in (1, 2):
        folder = root.with_name(str(number)) / "ensemble"
        shutil.copytree(judging / "ensemble", folder)
        (folder / "note.txt").write_text(str(number))
        registry.register(uri, run_id, folder, name, key=key)
    record(workspace, name, "promote", "1", known_groups=[])
    judge(changed(at_present(workspace, params, uri, name), "promotion.floor_miou=0"))
    assert len(list((workspace.scratch / "predictions").glob("*.np?"))) == 6, "counts of two splits, masks of one"
    return root


@pytest.fixture
def case(template: Path, tmp_path: Path) -> Case:
    """Version 2 is to be judged against version 1, in a workspace of the test's own."""
    shutil.copytree(template, tmp_path / "workspace", symlinks=True)
    workspace = Workspace.open(tmp_path / "workspace")
    params = read_params(workspace.params)
    return at_present(workspace, params, tracking_uri(workspace, params), model_name(workspace, params))


def record(workspace: Workspace, name: str, action: str, version: str, **facts: Any) -> None:
    book = book_of(workspace)
    book.append(book.begin(name), Entry(action=action, version=version, decision="PASS", facts=facts))


def book_of(workspace: Workspace) -> Ledger:
    return workspace_ledger(workspace.root)


def at_present(workspace: Workspace, params: Params, uri: str, name: str) -> Case:
    rows = book_of(workspace).rows(name)
    return Case(workspace=workspace, params=params, uri=uri, model=name, challenger="2", rows=rows)


def changed(case: Case, *assignments: str) -> Case:
    set_params(case.workspace.params, list(assignments))
    return replace(case, params=read_params(case.workspace.params))


@pytest.mark.long
def test_few_groups_decide_nothing_but_the_figures_are_there(case: Case) -> None:
    counts = sorted((case.workspace.scratch / "predictions").glob("*.npy"))
    times = [path.stat().st_mtime_ns for path in counts]
    verdict = judge(changed(case, "promotion.floor_miou=0", "promotion.screen=false"))
    assert len(counts) == 4 and [path.stat().st_mtime_ns for path in counts] == times, "predicted once"
    assert verdict.decision == "UNDECIDABLE" and "test groups can't decide" in verdict.reasons[0]
    facts = verdict.facts
    assert (facts["judged"], facts["alpha_spent"], facts["pixels_apart"]) == (False, 0.0, 0.0)
    assert facts["challenger_miou"] == facts["champion_miou"] and facts["gain"] == 0.0
    assert facts["known_groups"] == sorted(map(group_id, set(PackedSplit(case.workspace.packed / "test").groups)))
    kept = predictions_of(case.workspace, case.params, facts["manifest_sha256"])
    assert kept.is_file() and predictions_of(case.workspace, case.params, facts["champion_manifest_sha256"]).is_file()


def test_a_challenger_that_is_not_ahead_on_val_costs_no_judgement(case: Case) -> None:
    verdict = judge(changed(case, "promotion.floor_miou=0"))
    assert verdict.decision == "INCONCLUSIVE" and "which saves a judgement" in verdict.reasons[0]
    assert verdict.facts["judged"] is False and verdict.facts["alpha_spent"] == 0.0


@pytest.mark.long
def test_nothing_of_sealed_groups_leaves_the_gate(case: Case, judging: Path) -> None:
    groups = sorted(set(PackedSplit(case.workspace.packed / "test").groups))
    sealed = changed(case, f"split.sealed={json.dumps(groups[1:])}", "promotion.floor_miou=0", "promotion.rule=plain")
    reports, before = case.workspace.reports, set((case.workspace.scratch / "predictions").glob("*.npy"))
    evaluate(judging / "ensemble", case.workspace.packed, reports, sealed=tuple(groups[1:]))
    shown = judge(sealed)
    assert shown.facts["sealed"] is True and shown.facts["groups"] == len(groups) - 1
    figures = ("gain", "p_value", "conditions", "champion_miou", "challenger_miou", "champion_iou", "classes_lost")
    assert [name for name in figures if name in shown.facts] == []
    state = gate_state(case.workspace, sealed.params, case.rows)
    assert state is not None and (state["groups"], state["groups_needed"]) == (len(groups) - 1, 6)
    counts = len(read_counts(reports / "counts.npz").ids)
    made = set((case.workspace.scratch / "predictions").glob("*.npy")) - before
    assert made
    for path in made:
        assert len(np.load(path)) == counts, "of open images alone"


@pytest.mark.long
def test_a_version_that_predicts_otherwise_than_evaluate_measured_is_not_judged(case: Case) -> None:
    path = case.workspace.reports / "counts.npz"
    with np.load(path) as kept:
        arrays = dict(kept)
    arrays["ensemble"] = np.roll(arrays["ensemble"], 1, axis=2)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    with pytest.raises(SegmillError, match="version 2 does not predict what evaluate measured"):
        judge(case)


@pytest.mark.long
def test_the_true_gain_is_measured_once_on_groups_that_arrived_since(case: Case) -> None:
    assert measured_since(case) is None, "the first champion took nobody's place"
    book, workspace = book_of(case.workspace), case.workspace
    names = sorted(set(PackedSplit(workspace.packed / "test").groups))
    record(workspace, case.model, "promote", "2", known_groups=[*map(group_id, names[2:])])
    assert measured_since(at_present(workspace, case.params, case.uri, case.model)) is None, "two groups are too few"
    record(workspace, case.model, "promote", "1", known_groups=[])
    entry = measured_since(at_present(workspace, case.params, case.uri, case.model))
    assert entry is not None and (entry.action, entry.version) == ("measure", "1")
    assert (entry.facts["against"], entry.facts["groups"], entry.facts["gain"]) == ("2", len(names), 0.0)
    book.append(book.begin(case.model), entry)
    found = at_present(workspace, case.params, case.uri, case.model)
    assert measured_since(found) is None
    verdict = judge(found)
    assert verdict.facts["since_promotion"]["version"] == "1"


@pytest.mark.long
def test_time_and_size_are_measured_where_they_are_asked_for(case: Case) -> None:
    guards = "promotion.guards={latency_ratio: 50, size_ratio: 1.5}"
    asked = changed(case, guards, "promotion.floor_miou=0", "promotion.rule=plain", "promotion.confidence=0.7")
    verdict = judge(asked)
    found = {one["name"]: one for one in verdict.facts["conditions"]}
    assert found["size"]["outcome"] == "met" and 0.99 < found["size"]["figures"]["ratio"] < 1.01
    assert found["latency"]["outcome"] == "met" and found["latency"]["figures"]["ratio"] > 0
