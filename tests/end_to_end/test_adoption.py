"""A workspace of an earlier release, with the commands that a person types: doctor --fix, retrain, retrain again."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from terminal import run, states

from segmill.workspace import Workspace
from tasks.adoption import ADOPTED

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_workspace_of_an_earlier_release_keeps_its_members(tmp_path: Path, servers: dict[str, str]) -> None:
    with tarfile.open(Path(__file__).with_name("workspace_2d2f2c2.tar.xz")) as packed:
        packed.extractall(tmp_path / "former", filter="data")
    workspace = Workspace(tmp_path / "former")
    weights = (workspace.member("net") / "weights.safetensors").read_bytes()
    assert "segmill doctor --fix" in run(workspace, "segmill", "retrain", code=1)
    said = run(workspace, "segmill", "doctor", "--fix")
    assert "train.clip_norm is train.max_grad_norm now" in said and "dvc.yaml: " in said
    # Its one test group shows nothing: without a floor the first version needs none.
    said = run(workspace, "segmill", "retrain", "--set", "promotion.floor_miou=0", servers=servers)
    found = states(said)
    assert {found["finetune@net"], found["finetune@svm"]} == {"restored"}
    assert said.count(ADOPTED) == 2
    assert (found["ensemble"], found["evaluate"]) == ("ran", "ran")
    assert (workspace.member("net") / "weights.safetensors").read_bytes() == weights
    assert "nothing to do" in run(workspace, "segmill", "retrain", servers=servers)
    assert "up to date" in run(workspace, "dvc", "status")
    assert "Running stage" not in run(workspace, "dvc", "repro")
