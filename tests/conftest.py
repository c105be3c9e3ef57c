from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from terminal import NICENESS

from flows.environment import switch_telemetry_off
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
# What `ray.init` sets for a cluster that it starts; who joins that one needs it before Ray is imported.
os.environ["RAY_AUTH_MODE"] = "token"
STREET_PX = (64, 64)


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


@contextmanager
def serving(program: str, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server of the environment on a free port of loopback while the block runs; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name(program)), *options, str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env={**os.environ, **(environment or {})}, **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, f"{program} did not start"
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Return the address of a real S3 API on loopback: moto's server in a process of its own."""
    with serving("moto_server", "-H", "127.0.0.1", "-p") as url:
        yield url


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the API of a Prefect server that many runs share: to start one takes each run seconds."""
    home = {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}
    with serving("prefect", "server", "start", "--host", "127.0.0.1", "--port", environment=home) as url:
        yield f"{url}/api"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Return the address of a Ray of two cores that many runs share, as a cluster is: to start one takes seconds."""
    program = (
        "import sys, ray; from segmill.cluster.connection import connect\n"
        "with connect('local', 2):\n"
        "    print(ray.get_runtime_context().gcs_address, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:  # it ends when its standard input is closed
        assert head.stdin and head.stdout
        address = head.stdout.readline().strip()
        assert address
        yield address
        head.stdin.close()


@pytest.fixture(scope="module")
def joined(ray_cluster: str) -> Iterator[None]:
    """Connect the tests' own process to the Ray that many runs share."""
    from segmill.cluster.connection import connect

    with connect(ray_cluster):
        yield


@pytest.fixture(scope="session")
def servers(ray_cluster: str, prefect_server: str) -> dict[str, str]:
    """The variables that let a command join servers that run, instead of starting its own."""
    return {"RAY_ADDRESS": ray_cluster, "RAY_AUTH_MODE": "token", "PREFECT_API_URL": prefect_server}


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
