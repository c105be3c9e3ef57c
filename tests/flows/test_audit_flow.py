"""`segmill audit`: one sentence where it can't, and the whole way with real trainings where it can."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from jobs import FLIP, train_job
from rich.console import Console
from ruamel.yaml import YAML

from flows.audit import _fold_member, audit, fold_job, fold_training
from flows.commands.audit import show
from segmill.errors import InputError
from segmill.evaluation.audit_job import AuditResult
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.stage import bring_up_to_date, stage_names

FIRST = {
    "rank": 1, "sample": "a/[b]_01", "split": "val", "given": "sky", "suggested": "road", "pixels": 120,
    "confidence": 0.914, "regions": 3, "sample_score": 0.5,
}  # fmt: skip


def audited(workspace: Workspace, folds: int = 0, member: str | None = None, epochs: int | None = None) -> AuditResult:
    params = read_params(workspace.params)
    training = fold_training(workspace, params, folds, member, epochs)
    assert training is None or (training.member, training.epochs, training.own_epochs) == ("tiny", epochs or 3, 6)
    return audit(workspace, params, workspace.root / "audit", 5, Console(file=io.StringIO()), training)


def printed(found: AuditResult) -> str:
    console = Console(file=io.StringIO(), width=120)
    show(found, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_without_an_ensemble_it_says_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"there is no trained ensemble yet.*`segmill retrain` first"):
        audited(workspace)
    assert not (workspace.root / "audit").exists()


def test_folds_need_a_network(workspace: Workspace) -> None:
    set_params(workspace.params, ["members={shades: {kind: svm}}"])
    with pytest.raises(InputError, match=r"no member of params\.yaml is a network"):
        _fold_member(workspace, read_params(workspace.params), None)


def test_an_ensemble_of_other_data_is_refused(workspace: Workspace) -> None:
    workspace.ensemble.mkdir(parents=True)
    (workspace.ensemble / "ensemble.json").write_text("{}")
    with pytest.raises(InputError, match=r"not made from these splits \(prepare ran with another .*segmill retrain"):
        audited(workspace)


def test_the_first_rows_and_the_paths_are_shown() -> None:
    text = printed(
        AuditResult(
            page=Path("/x/index.html"), table=Path("/x/audit.csv"), samples={"val": 3, "test": 4}, suspicious=1,
            unknown=["[/b]x"], first=[FIRST],
        )
    )  # fmt: skip
    assert "examined 3 val, 4 test samples: 1 are suspicious" in text
    assert "a model hardly knows [/b]x: objects of these classes that are missing are not found" in text
    assert "train was not examined" in text and "--folds" in text
    assert re.search(r"1 +a/\[b\]_01 +val +sky +road +120 +0\.91 +3 +0\.50", text)
    assert text.endswith("/x/index.html\n/x/audit.csv\n")


def test_nothing_suspicious_shows_no_table() -> None:
    text = printed(
        AuditResult(page=Path("p"), table=Path("t"), samples={"val": 3, "train": 9}, suspicious=0, unknown=[], first=[])
    )
    assert text == "examined 3 val, 9 train samples: 0 are suspicious\np\nt\n"


def test_a_folds_record_says_how_it_was_trained_not_how_its_member_is(tmp_path: Path) -> None:
    policy = replace(FLIP, extra={"balance": 3})
    whole = train_job(
        tmp_path, epochs=20, val_every=2, policy=policy, extra_dir=tmp_path / "extra", own_keys=("epochs",)
    )
    assert whole.record()["augment"]["extra_samples"] == {"balance": 3}
    fold = fold_job(whole, frozenset({"g1"}), 5, tmp_path / "audit")
    record = fold.record()
    assert (record["train"]["epochs"], record["train"]["val_every"], record["member"]["epochs"]) == (5, 5, 5)
    assert record["augment"]["extra_samples"] == {"balance": 0}
    assert fold.data.packed_dir.parent == fold.out_dir.parent == tmp_path / "audit" / fold.inputs_hash
    other = fold_job(whole, frozenset({"g2"}), 5, tmp_path / "audit")
    assert len({whole.inputs_hash, fold.inputs_hash, other.inputs_hash}) == 3


@pytest.mark.long
@pytest.mark.slow
def test_held_out_and_folds_with_real_trainings(workspace: Workspace, joined: None) -> None:
    yaml = YAML()
    content = yaml.load(workspace.params)
    content["members"] = {
        "tiny": {"backbone": "mobilenetv2_050", "decoder": "fpn", "weights": "none", "lr": 0.005, "epochs": 6}
    }
    content["prepare"]["size_px"] = [64, 64]
    content["augment"]["recipe"] = "none"
    yaml.dump(content, workspace.params)
    masks = sorted((workspace.root / "data/raw/masks").glob("*.png"))
    for path in masks[::16]:  # sky and road swapped: nothing a model of the rest would say
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        swapped = mask.copy()
        swapped[mask == 0], swapped[mask == 1] = 1, 0
        cv2.imwrite(str(path), swapped)
    params = read_params(workspace.params)
    for name in stage_names(params):
        if name != "evaluate":
            bring_up_to_date(workspace, name)
    with pytest.raises(InputError, match="there is no network 'tinny'; did you mean 'tiny'"):
        audited(workspace, folds=2, member="tinny")
    with pytest.raises(InputError, match="--folds is 99 and train has"):
        audited(workspace, folds=99)
    audited(workspace, folds=2, epochs=6)
    models = {path: path.stat().st_mtime_ns for path in (workspace.scratch / "audit").glob("*/member/member.json")}
    again = audited(workspace, folds=2, epochs=6)
    assert len(models) == 2 and all(path.stat().st_mtime_ns == written for path, written in models.items())
    for path in models:
        recorded = json.loads(path.read_text())["params"]
        assert (recorded["train"]["epochs"], recorded["train"]["val_every"], recorded["member"]["epochs"]) == (6, 6, 6)
    rows = list(csv.DictReader((workspace.root / "audit" / "audit.csv").open()))
    assert sum(again.samples.values()) == len(masks) == 80
    planted = {path.stem for path in masks[::16]}
    first = list(dict.fromkeys(row["sample"] for row in rows))[: len(planted)]
    assert len(planted & set(first)) >= len(planted) - 1
