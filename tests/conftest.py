from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.environment import switch_telemetry_off
from flows.start import create
from segmill.data.samples import write_street
from segmill.workspace import Workspace

switch_telemetry_off()
STREET_PX = (64, 64)


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of 80 street scenes of 64 x 64 px in 8 sequences. Copy it before you change it."""
    raw_dir = tmp_path_factory.mktemp("street")
    write_street(raw_dir, count=80, size=STREET_PX, seed=0)
    return raw_dir


@pytest.fixture(scope="session")
def _street_workspace(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Workspace:
    return create(tmp_path_factory.mktemp("template") / "workspace", street)


@pytest.fixture
def workspace(tmp_path: Path, _street_workspace: Workspace) -> Iterator[Workspace]:
    """A fresh workspace of its own around the street scenes; the servers' variables are as in a new terminal."""
    root = tmp_path / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    yield Workspace.open(root)
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))]:
        del os.environ[name]
    os.environ.update(kept)


@pytest.fixture(autouse=True)
def _gpu_where_it_is_needed(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
