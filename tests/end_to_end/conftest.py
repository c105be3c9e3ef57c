"""A workspace around the atlas, with members as small as they come."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postings import Endpoint, endpoint
from prefect_servers import PrefectServers, prefect_servers
from ruamel.yaml import YAML
from terminal import run

from flows.commands.start import create
from segmill.data.ingest.builtin import write_brain
from segmill.workspace import Workspace

SMALL: dict[str, Any] = {
    "prepare": {"size_px": [96, 96]},
    "members": {
        "fpn": {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003},
        "unet": {"backbone": "resnet10t", "decoder": "unet", "weights": "none", "lr": 0.003},
    },
    "promotion": {"floor_miou": 0.05, "min_gain": 0.0, "confidence": 0.95, "rule": "plain"},  # six test groups
}


@pytest.fixture(scope="session")
def brain_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workspace]:
    """Return what gives a new workspace around the atlas."""
    folder = tmp_path_factory.mktemp("template")
    write_brain(folder / "atlas", every=4)
    template = create(folder / "workspace", folder / "atlas")

    def copy(folder: Path, *members: str, epochs: int = 2) -> Workspace:
        shutil.copytree(template.root, folder / "workspace", symlinks=True)
        workspace = Workspace.open(folder / "workspace")
        yaml = YAML()
        params = yaml.load(workspace.params)
        params["train"] |= {"epochs": epochs, "val_every": 1}
        chosen = {name: SMALL["members"][name] for name in members or SMALL["members"]}
        yaml.dump({**params, **SMALL, "members": chosen}, workspace.params)
        return workspace

    return copy


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
