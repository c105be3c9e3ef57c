from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from shared_servers import folder_of_servers, shared_server
from terminal import NICENESS

from flows.environment import switch_telemetry_off
from segmill.cluster.connection import LOOPBACK_ONLY
from segmill.data.ingest.builtin import write_street
from segmill.workspace import Workspace

switch_telemetry_off()
# Where readline was imported, pytest-xdist's workers are born with a terminal's size, which Rich would keep.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
# Tests run side by side: with several threads each, all would wait for one another in every operation.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers give way to every other process, the tests beside them too, which may keep them waiting for minutes.
os.environ[NICENESS] = "0"
# What is set for a cluster that is started here; who joins that one needs it before Ray is imported, by whatever test.
os.environ |= {"RAY_AUTH_MODE": "token", LOOPBACK_ONLY: "0"}
STREET_PX = (64, 64)


def pytest_configure(config: pytest.Config) -> None:
    """Make a place for shared servers in the process that starts the others; servers end with it."""
    if not hasattr(config, "workerinput"):
        place = ExitStack()
        place.enter_context(folder_of_servers())
        # A key for signing is made here, in no home folder. pytest-xdist's processes inherit it.
        os.environ["XDG_CONFIG_HOME"] = place.enter_context(TemporaryDirectory(prefix="segmill-config-"))
        config.add_cleanup(place.close)


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set of 80 street scenes of 64 x 64 px in 8 sequences. Copy it before you change it."""
    raw_dir = tmp_path_factory.mktemp("street")
    write_street(raw_dir, count=80, size=STREET_PX, seed=0)
    return raw_dir


@pytest.fixture(scope="session")
def _street_workspace(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Workspace:
    from flows.commands.start import (
        create,  # it makes a Rich console, which would keep what goes from the environment above
    )

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


@pytest.fixture(scope="session")
def s3() -> str:
    """Return the address of a real S3 API on loopback: moto's server in a process of its own."""
    return shared_server("s3")


@pytest.fixture(scope="session")
def ray_cluster() -> str:
    """Return the address of a Ray that all runs share, as a cluster is: to start one takes seconds."""
    return shared_server("ray")


@pytest.fixture(scope="module")
def joined(ray_cluster: str) -> Iterator[None]:
    """Connect the tests' own process to the Ray that many runs share."""
    from segmill.cluster.connection import connect

    with connect(ray_cluster):
        yield


@pytest.fixture(scope="session")
def servers() -> dict[str, str]:
    """The variables that let a command join a Ray and a Prefect server that run, instead of starting its own."""
    with ThreadPoolExecutor() as both:
        cluster, api = both.map(shared_server, ("ray", "prefect"))
    return {"RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "token", "PREFECT_API_URL": api}


@pytest.fixture
def credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the S3 API on loopback, and credentials for it, as AWS's environment variables do."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _gpu_where_it_is_needed(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
