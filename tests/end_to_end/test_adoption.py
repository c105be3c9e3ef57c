"""A workspace of an earlier release, with the commands that a person types: doctor --fix, retrain, retrain again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from segmill.workspace import Workspace
from tasks.adoption import ADOPTED

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def run(workspace: Workspace, *command: str, code: int = 0) -> str:
    home = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW", "RAY"))}
    environment = {**home, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "300"}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=workspace.root, capture_output=True, text=True, env=environment
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    return said


def test_a_workspace_of_an_earlier_release_keeps_its_members(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).with_name("workspace_2d2f2c2.tar.xz")) as packed:
        packed.extractall(tmp_path / "former", filter="data")
    workspace = Workspace(tmp_path / "former")
    weights = (workspace.member("net") / "weights.safetensors").read_bytes()
    assert "segmill doctor --fix" in run(workspace, "segmill", "retrain", code=1)
    said = run(workspace, "segmill", "doctor", "--fix")
    assert "train.clip_norm is train.max_grad_norm now" in said and "dvc.yaml: " in said
    said = run(workspace, "segmill", "retrain")
    states = dict(re.findall(r"^([\w@-]+): (fresh|restored|ran|failed)\b", said, re.MULTILINE))
    assert {states["finetune@net"], states["finetune@svm"]} == {"restored"}
    assert said.count(ADOPTED) == 2
    assert (states["ensemble"], states["evaluate"]) == ("ran", "ran")
    assert (workspace.member("net") / "weights.safetensors").read_bytes() == weights
    assert "nothing to do" in run(workspace, "segmill", "retrain")
    assert "up to date" in run(workspace, "dvc", "status")
    assert "Running stage" not in run(workspace, "dvc", "repro")
