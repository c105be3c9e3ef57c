from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import tasks.prepare
import tasks.stage
from segmill.data.packing.pack import pack
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.inputs import code_path, refuse_other_settings, settings_path
from tasks.stage import bring_up_to_date, recorded_md5, survey
from tasks.version import version

LIGHT = ("fingerprint", "validate", "prepare", "augment")
LIGHT_AFTER = ("ensemble", "evaluate")


def bring_light(workspace: Workspace) -> dict[str, tuple[str, str]]:
    version(workspace, read_params(workspace.params))
    outcomes = [bring_up_to_date(workspace, name) for name in LIGHT]
    return {outcome.stage: (outcome.state, outcome.why) for outcome in outcomes}


@pytest.fixture(scope="module")
def _brought(tmp_path_factory: pytest.TempPathFactory, _street_workspace: Workspace) -> Workspace:
    root = tmp_path_factory.mktemp("brought") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    bring_light(Workspace.open(root))
    return Workspace.open(root)


@pytest.fixture
def brought(tmp_path: Path, _brought: Workspace) -> Workspace:
    """A workspace of its own whose light stages ran."""
    root = tmp_path / "workspace"
    shutil.copytree(_brought.root, root, symlinks=True)
    return Workspace.open(root)


def recorded_settings(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return the settings that dvc.lock records for the last run of a stage."""
    (settings,) = YAML(typ="safe").load(workspace.root / "dvc.lock")["stages"][name]["params"].values()
    return dict(settings)


def dvc(workspace: Workspace, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("dvc")), *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_every_stage_runs_then_none(workspace: Workspace) -> None:
    assert bring_light(workspace) == {name: ("ran", "never ran here") for name in LIGHT}
    assert bring_light(workspace) == {name: ("fresh", "unchanged") for name in LIGHT}


def test_dvc_finds_nothing_to_do_after_the_bridge(brought: Workspace) -> None:
    assert "didn't change, skipping" in dvc(brought, "repro", "augment")
    assert "Running" not in dvc(brought, "repro", "augment")


@pytest.mark.slow
@pytest.mark.long
def test_the_bridge_finds_nothing_to_do_after_dvc(workspace: Workspace) -> None:
    version(workspace, read_params(workspace.params))
    assert "Running stage 'prepare'" in dvc(workspace, "repro", "augment")
    assert {state for state, _ in bring_light(workspace).values()} == {"fresh"}


def test_a_param_is_named_with_its_old_and_new_value(brought: Workspace) -> None:
    set_params(brought.params, ["prepare.size_px=[32, 64]"])
    assert bring_light(brought)["prepare"] == ("ran", "prepare.size_px [64, 64] -> [32, 64]")
    assert survey(brought)["augment"].state == "fresh"


@pytest.mark.long
def test_a_changed_default_and_another_kind_of_number_are_noticed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params(workspace.params, ["prepare.clahe=1e-05"])
    bring_light(workspace)
    assert bring_light(workspace)["prepare"] == ("fresh", "unchanged"), "1e-05 is a number in dvc.lock too"
    text = workspace.params.read_text().replace("  overlap_px: 32", "  # overlap")
    assert "overlap_px" not in text
    workspace.params.write_text(text)
    assert survey(workspace)["prepare"].state == "fresh", "32 is the default"
    params = read_params(workspace.params)
    other = params.model_copy(update={"prepare": params.prepare.model_copy(update={"overlap_px": 16})})
    monkeypatch.setattr(tasks.stage, "read_params", lambda path: other)  # as a release with another default would
    assert survey(workspace)["prepare"].why == "prepare.overlap_px 32 -> 16"


def test_who_looks_writes_nothing(brought: Workspace) -> None:
    files = [path for folder in (brought.code, brought.settings) for path in folder.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in [*files, brought.root / "dvc.lock"]}
    set_params(brought.params, ["prepare.size_px=[32, 64]", "members.lite0-unet.lr=0.5"])
    assert survey(brought)["prepare"].why == "prepare.size_px [64, 64] -> [32, 64]"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_params_are_read_once_and_an_edit_in_the_middle_counts_for_the_next_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = read_params(workspace.params)
    version(workspace, params)
    sizes = []

    def pack_while_somebody_edits(*arguments: Any, **options: Any) -> None:
        set_params(workspace.params, ["prepare.size_px=[32, 96]", "augment.seed=5"])
        assert survey(workspace)["augment"].why == "never ran here"
        sizes.append(options["train"].resizing.size)
        pack(*arguments, **options)

    set_params(workspace.params, ["prepare.size_px=[32, 32]"])  # after the run has read it
    monkeypatch.setattr(tasks.prepare, "pack", pack_while_somebody_edits)
    assert [bring_up_to_date(workspace, name, params).state for name in LIGHT] == ["ran"] * 4
    assert sizes == [(64, 64)]
    assert recorded_settings(workspace, "prepare")["prepare"]["size_px"] == [64, 64]
    assert recorded_settings(workspace, "augment")["augment"]["seed"] == 0
    found = survey(workspace)
    assert found["prepare"].why == "prepare.size_px [64, 64] -> [32, 96]"
    assert found["augment"].why == "augment.seed 0 -> 5"


@pytest.mark.slow
def test_dvc_records_no_result_of_other_settings_than_it_wrote_down(brought: Workspace) -> None:
    set_params(brought.params, ["prepare.size_px=[32, 64]"])
    with pytest.raises(InputError, match=r"other settings for prepare .*prepare.size_px \[64, 64\] -> \[32, 64\]"):
        refuse_other_settings(brought, read_params(brought.params), "prepare")
    assert "Running stage 'prepare'" in dvc(brought, "repro", "augment"), "repro writes them down first"
    assert recorded_settings(brought, "prepare")["prepare"]["size_px"] == [32, 64]


def test_a_member_that_goes_takes_its_files_along(brought: Workspace) -> None:
    values = YAML().load(brought.params)
    del values["members"]["lite0-unet"]
    YAML().dump(values, brought.params)
    bring_light(brought)
    assert not code_path(brought, "finetune@lite0-unet").exists()
    assert not settings_path(brought, "finetune@lite0-unet").exists()
    assert list(survey(brought)) == [*LIGHT, "finetune@resnet18-linknet", "finetune@regnety-manet", *LIGHT_AFTER]


def test_a_known_result_comes_back_from_the_run_cache(brought: Workspace) -> None:
    first = recorded_md5(brought, "prepare")
    set_params(brought.params, ["prepare.size_px=[32, 64]"])
    bring_light(brought)
    set_params(brought.params, ["prepare.size_px=[64, 64]"])
    assert bring_light(brought)["prepare"][0] == "restored"
    assert recorded_md5(brought, "prepare") == first


def test_a_deleted_out_is_restored_not_computed(brought: Workspace) -> None:
    shard = next((brought.packed / "train").glob("*.bin"))
    shard.unlink()
    state, why = bring_light(brought)["prepare"]
    assert state in ("restored",), why
    assert shard.is_file()


def test_the_survey_follows_the_graph_downstream(brought: Workspace) -> None:
    set_params(brought.params, ["split.seed=1"])
    found = survey(brought)
    assert found["validate"].why == "split.seed 0 -> 1"
    assert found["prepare"].why == "follows validate"
    assert found["finetune@lite0-unet"].state == "stale"
    assert list(found)[:4] == list(LIGHT)


def test_a_dependency_that_moves_meanwhile_is_not_recorded(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(workspace, read_params(workspace.params))
    for name in ("fingerprint", "validate"):
        bring_up_to_date(workspace, name)

    def pack_while_somebody_writes(raw_dir: Path, *arguments: object, **options: object) -> None:
        pack(raw_dir, *arguments, **options)  # type: ignore[arg-type]
        (raw_dir / "note.txt").write_text("late")

    monkeypatch.setattr(tasks.prepare, "pack", pack_while_somebody_writes)
    with pytest.raises(InputError, match="data/raw changed while prepare ran"):
        bring_up_to_date(workspace, "prepare")
    assert survey(workspace)["prepare"].state == "stale"


def test_a_stage_that_fails_leaves_nothing_to_trust(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    version(workspace, read_params(workspace.params))
    for name in ("fingerprint", "validate"):
        bring_up_to_date(workspace, name)

    def full_disk(raw_dir: Path, manifest: Path, out_dir: Path, **options: object) -> None:
        out_dir.mkdir()
        (out_dir / "half").write_text("x")
        raise OSError(28, "No space left on device", str(out_dir / "half"))

    monkeypatch.setattr(tasks.prepare, "pack", full_disk)
    with pytest.raises(OSError):
        bring_up_to_date(workspace, "prepare")
    assert not workspace.packed.exists()
    assert [path.name for path in workspace.packed.parent.iterdir() if "packed" in path.name] == []
    monkeypatch.undo()
    assert bring_up_to_date(workspace, "prepare").state == "ran"


def test_a_clone_without_scratch_folder_and_a_moved_installation_go_on(brought: Workspace) -> None:
    shutil.rmtree(brought.scratch)
    assert bring_light(brought)["prepare"] == ("fresh", "unchanged")
    link = brought.sources / "segmill"
    link.unlink()
    link.symlink_to("/somewhere/else")
    assert bring_light(brought)["prepare"] == ("fresh", "unchanged")


def test_an_unknown_stage_or_member_names_the_near_miss(workspace: Workspace) -> None:
    from tasks.stage import run

    with pytest.raises(InputError, match="no stage prepair; did you mean 'prepare'"):
        run(workspace, "prepair", read_params(workspace.params))
    with pytest.raises(InputError, match="no member 'lite0-uent'; did you mean 'lite0-unet'"):
        run(workspace, "finetune@lite0-uent", read_params(workspace.params))
