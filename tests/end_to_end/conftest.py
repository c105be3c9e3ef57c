"""A workspace around the atlas, with members as small as they come, and servers of Prefect."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brain import brain_workspace
from postings import Endpoint, endpoint
from prefect_servers import PrefectServers, prefect_servers
from terminal import run

from segmill.workspace import Workspace

__all__ = ["brain_workspace"]


@pytest.fixture(scope="module")
def sink() -> Iterator[Endpoint]:
    """An address that Prefect's server calls."""
    with endpoint() as found:
        yield found


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, sink: Endpoint) -> Iterator[PrefectServers]:
    with prefect_servers(tmp_path_factory.mktemp("prefect"), {"SINK": sink.url}) as found:
        yield found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> Workspace:
    """A workspace where everything is up to date: a run of it takes seconds."""
    workspace = brain_workspace(tmp_path_factory.mktemp("trained"), "unet", epochs=1)
    run(workspace, "segmill", "retrain")
    return workspace


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> Workspace:
    """A workspace where nothing ran."""
    return brain_workspace(tmp_path_factory.mktemp("untrained"), "unet", epochs=1)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with a server that has no deployment, automation, pool or run."""
    yield
    if "prefect" not in request.fixturenames:
        return
    server: PrefectServers = request.getfixturevalue("prefect")
    with server.client() as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for one in client.read_flow_runs():
            client.delete_flow_run(one.id)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
