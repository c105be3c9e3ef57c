"""The layers of imports hold, and looking at a workspace stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "albumentations", "timm", "segmentation_models_pytorch", "cv2")


def test_imports_run_downhill() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["flows.commands.cli", "flows.commands.status", "flows.retrain", "tasks.stage"])
def test_the_flow_process_stays_light(module: str) -> None:
    check = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_command_itself_imports_neither_prefect_nor_dvc() -> None:
    check = "import sys, flows.commands.cli; print(*[name for name in ('prefect', 'dvc') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
