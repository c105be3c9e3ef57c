"""`segmill plan` on a checked set: what is read, what is shown, and that only --accept writes."""

from __future__ import annotations

import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.commands.plan import CANDIDATES, PROBE, gather, measured, plan
from segmill import progress
from segmill.cluster.connection import connect
from segmill.data.schema.manifest import read_dataset_info, read_manifest, write_dataset_info, write_manifest
from segmill.errors import InputError
from segmill.models.curves import write_curves
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.params_text import say
from segmill.training.measure.probe import measure
from segmill.training.measure.probe_job import Machine, ProbeCandidate, ProbeJob, ProbeResult
from segmill.training.measure.rehearsal import Rehearsal
from segmill.tuning.forecast import PastTraining
from segmill.user_cache import user_cache
from segmill.workspace import Workspace
from tasks.finetune import curves_path, note_speed
from tasks.stage import run

MACHINE = {"gpu": None, "gpu_memory_gib": 0.0, "quick_bf16": True}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("platform.node", lambda: "here")


@pytest.fixture
def checked(workspace: Workspace) -> Workspace:
    """A checked set on a machine whose speed is remembered."""
    for name in ("fingerprint", "validate"):
        run(workspace, name, read_params(workspace.params))
    names = ("backbone", "decoder", "name", "lr", "settings")
    asked = {"probe": PROBE, "candidates": [{**asdict(one), "starts": list(one.starts)} for one in CANDIDATES]}
    candidates = [
        {**{key: one[key] for key in names}, "weights": one["starts"][0], "pixels_s": 1e6 + place}
        for place, one in enumerate(asked["candidates"])
    ]
    keep(asked, candidates)
    return workspace


def keep(asked: object, candidates: object, **machine: object) -> None:
    """Remember the speed of the machine "here" for the user."""
    user_cache("speed").mkdir(parents=True, exist_ok=True)
    progress.report(user_cache("speed") / "here.json", asked=asked, candidates=candidates, machine=MACHINE | machine)


def test_without_a_manifest_it_says_what_to_do(workspace: Workspace) -> None:
    done = CliRunner().invoke(app, ["plan", "--minutes", "60", "--workspace", str(workspace.root)])
    assert isinstance(done.exception, InputError) and "run `segmill validate` first" in str(done.exception)


def test_an_empty_train_split_says_what_to_do(checked: Workspace) -> None:
    table = read_manifest(checked.manifest)
    val = pa.array(["val"] * len(table))
    write_manifest(checked.manifest, table.set_column(table.column_names.index("split"), "split", val))
    with pytest.raises(InputError, match="the train split is empty"):
        gather(checked, read_params(checked.params), quiet(), seconds=9)


def test_the_facts_are_those_of_train(checked: Workspace) -> None:
    every = read_manifest(checked.manifest).to_pylist()
    rows = [row for row in every if row["split"] == "train"]
    facts = gather(checked, read_params(checked.params), quiet(), seconds=9)
    assert facts.samples == len(rows) and facts.sizes == {(64, 64): len(rows)}
    set_params(checked.params, ["prepare.border_crop_px=[4, 0, 10, 2]"])
    cropped = gather(checked, read_params(checked.params), quiet(), seconds=9)
    assert cropped.sizes == {(60, 52): len(rows)} and cropped.val_px == facts.val_px, "val is scored as it came"
    assert facts.val_px == 64 * 64 * sum(row["split"] == "val" for row in every) > 0
    assert facts.test_px == 64 * 64 * sum(row["split"] == "test" for row in every) > 0
    assert facts.look is not None and facts.look.coloured == 1.0
    assert facts.recipe is None, "what a new workspace has was not chosen by anybody"
    assert sum(facts.class_pixels.values()) == sum(sum(row["class_pixels"]) for row in rows)
    assert facts.class_samples["sky"] == sum(row["class_pixels"][0] > 0 for row in rows)
    assert len(facts.candidates) == len(CANDIDATES)


def test_only_accept_writes_and_then_nothing_is_left_to_propose(checked: Workspace) -> None:
    before = checked.params.read_text()
    console = quiet()
    proposals = plan(checked, read_params(checked.params), 30, console, accepted=False).proposals
    assert checked.params.read_text() == before
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the gate can't promote a version over a champion on 2 test groups" in said
    assert " images make " in said and "steps of" in said and "groups of their own" not in said
    assert "segmill plan --minutes 30 --accept" in said and "train.max_minutes  unset -> 25.5" in said
    plan(checked, read_params(checked.params), 30, quiet(), accepted=True)
    params = read_params(checked.params)
    assert [one.value for one in proposals if one.key == "train.max_minutes"] == [params.train.max_minutes]
    assert [list(one.value) for one in proposals if one.key == "members"] == [list(params.members)]
    assert list(YAML(typ="safe").load(checked.params.read_text())["members"]) == list(params.members), "as DVC reads it"
    again = quiet()
    plan(checked, params, 30, again, accepted=False)
    assert f"train.max_minutes  {params.train.max_minutes:g} stays" in again.file.getvalue()  # type: ignore[attr-defined]
    assert "nothing was written" not in again.file.getvalue()  # type: ignore[attr-defined]


def test_a_recipe_that_was_set_stays(checked: Workspace) -> None:
    set_params(checked.params, ["augment.recipe=surveillance"])
    plan(checked, read_params(checked.params), 30, quiet(), accepted=True)
    assert read_params(checked.params).augment.recipe == "surveillance"


def test_groups_that_look_wrong_are_said(checked: Workspace) -> None:
    info = read_dataset_info(checked.root / "data" / "raw")
    write_dataset_info(checked.root / "data" / "raw", replace(info, group=None))
    console = quiet()
    plan(checked, read_params(checked.params), 30, console, accepted=False)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "80 of 80 samples are groups of their own" in said and "street_s0000_f00, street_s0000_f01" in said


@pytest.mark.long
def test_what_a_training_did_counts_in_the_next_plan(checked: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.5, 0.5))
    params = read_params(checked.params)
    first = {one.name: one for one in gather(checked, params, quiet(), seconds=9).candidates}
    assert all(one.trained == () for one in first.values())
    run(checked, "prepare", params)
    chosen = first["lite0-fpn"]
    member = {"backbone": chosen.backbone, "decoder": chosen.decoder, "weights": "none", "lr": 0.01, **chosen.settings}
    set_params(checked.params, [f"members={{mine: {say(member)}}}", "prepare.size_px=[64, 64]"])
    params = read_params(checked.params)
    curve = curves_path(checked, "mine")
    curve.parent.mkdir(parents=True, exist_ok=True)
    checked.member("mine").mkdir(parents=True)
    (checked.member("mine") / "member.json").write_text(json.dumps({"params": {"train": {"batch_size": 8}}}))
    write_curves(curve, [{"epoch": number, "images_s": speed} for number, speed in enumerate((1.0, 40.0, 42.0), 1)])
    with connect("local"):
        note_speed(checked, params, "mine")
    (trained,) = next(one.trained for one in gather(checked, params, quiet(), seconds=9).candidates
                      if one.name == "lite0-fpn")  # fmt: skip
    assert trained == PastTraining(8 * 64 * 64, 1.0, 40.0 * 64 * 64), "the median epoch, one member on all cores"
    others = [one for one in gather(checked, params, quiet(), seconds=9).candidates if one.name != "lite0-fpn"]
    assert all(one.trained == () for one in others)
    curve.write_text(curve.read_text().replace("40.0", "4000.0"))
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.5, 0.5))
    note_speed(checked, params, "mine")  # on a busy machine
    monkeypatch.setattr("os.getloadavg", lambda: (0.5, 0.5, 0.5))
    set_params(checked.params, ["train.compile=auto"])
    with connect("local"):
        note_speed(checked, read_params(checked.params), "mine")
    again = next(one for one in gather(checked, params, quiet(), seconds=9).candidates if one.name == "lite0-fpn")
    assert again.trained == (trained,), "a compiled training has a speed of its own"


def test_candidates_that_can_not_be_built_are_left_out_and_weights_out_of_reach_become_none() -> None:
    small = ProbeCandidate(
        name="a",
        backbone="mobilenetv3_small_050",
        decoder="fpn",
        lr=0.001,
        settings={},
        starts=("package:there-is-none", "none"),
    )
    found, _ = measure(ProbeJob((small, replace(small, name="b", decoder="nosuch")), num_classes=3, side_px=64))
    assert [(one.candidate, one.weights) for one in found] == [(small, "none")]
    assert found[0].pixels_s > 0


def test_what_a_step_takes_besides_its_pixels_is_told_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Rehearsal, batch_size: int) -> float:
        return 0.05 + batch_size * self._size_px[0] * self._size_px[1] / 800_000

    monkeypatch.setattr(Rehearsal, "step", step)
    small = ProbeCandidate(
        name="a", backbone="mobilenetv3_small_050", decoder="fpn", lr=0.001, settings={}, starts=("none",)
    )
    ((found,), _) = measure(ProbeJob((small,), num_classes=3))
    assert (found.pixels_s, found.step_s) == (pytest.approx(800_000), pytest.approx(0.05))


@pytest.mark.long
def test_measuring_ends_in_time_and_counts(tmp_path: Path) -> None:
    small = ProbeCandidate(
        name="a", backbone="mobilenetv3_small_050", decoder="fpn", lr=0.001, settings={}, starts=("none",)
    )
    note = tmp_path / "count.json"
    began = time.monotonic()
    found, tried = measure(ProbeJob((small, small, small), num_classes=3, side_px=256, seconds=0.0, progress_path=note))
    assert len(found) == tried == 3 and all(one.pixels_s > 0 for one in found)
    assert time.monotonic() - began < 30, "building and two to four steps of each"
    assert progress.read(note) == {"done": 3, "total": 3}


@pytest.mark.slow
@pytest.mark.long
def test_the_machine_is_measured_once_for_the_same_candidates_in_all_workspaces(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, joined: None
) -> None:
    small = replace(CANDIDATES[0], backbone="mobilenetv3_small_050", starts=("none",))
    monkeypatch.setattr("flows.commands.plan.CANDIDATES", (small,))
    params = read_params(workspace.params)
    found = measured(workspace, params, 4, quiet(), seconds=2)
    assert [one.weights for one in found[0]] == ["none"]
    assert isinstance(found[1].quick_bf16, bool) and found[1].load >= 0
    with monkeypatch.context() as patch:
        patch.delattr("segmill.cluster.work.on_ray")
        assert measured(Workspace(workspace.root / "another"), params, 4, quiet(), seconds=2) == found
        with pytest.raises(ImportError):
            measured(workspace, params, 4, quiet(), seconds=2, again=True)
    monkeypatch.setattr("flows.commands.plan.CANDIDATES", (replace(small, name="other"),))
    again = measured(workspace, params, 4, quiet(), seconds=2)
    assert [one.name for one in again[0]] == ["other"], "other candidates are measured"


@pytest.mark.long
def test_a_machine_too_busy_to_measure_all_measures_the_rest_the_next_time(
    checked: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ProbeCandidate(
        name="a", backbone="mobilenetv3_small_050", decoder="fpn", lr=0.001, settings={}, starts=("none",)
    )
    monkeypatch.setattr("flows.commands.plan.CANDIDATES", (small, replace(small, name="b")))
    monkeypatch.setattr("segmill.training.measure.probe.BUILDING_S", 0.0)
    params = read_params(checked.params)

    def names(seconds: float) -> list[str]:
        found, tried = measure(ProbeJob((small, replace(small, name="b")), 4, side_px=64, seconds=seconds))
        result = ProbeResult(found, Machine(**MACHINE), tried)
        monkeypatch.setattr("flows.commands.plan._measure", lambda *_: result)
        return [one.name for one in measured(checked, params, 4, quiet(), seconds=seconds)[0]]

    assert names(0.0) == ["a"]
    assert names(60.0) == ["a", "b"], "not kept for good"
    assert names(0.0) == ["a", "b"], "now it is"


def test_speeds_of_a_busy_machine_are_not_kept_without_a_word(checked: Workspace) -> None:
    known = progress.read(user_cache("speed") / "here.json")
    assert known is not None
    keep(known["asked"], known["candidates"], load=0.9)
    console = quiet()
    gather(checked, read_params(checked.params), console, seconds=9)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "busy when it was measured (90% of its cores)" in said and "segmill plan --measure-again" in said
