"""What tests of a schedule ask of a workspace and of Prefect's server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from postings import Endpoint
from prefect.client.schemas.objects import FlowRun
from prefect_servers import PrefectServers
from ruamel.yaml import YAML
from terminal import run_json

from segmill.workspace import Workspace

MODEL = "segmill-brain"


def schedule(workspace: Workspace, **keys: Any) -> None:
    """Write the block `schedule` of params.yaml."""
    yaml = YAML()
    params = yaml.load(workspace.params)
    yaml.dump({**params, "schedule": keys}, workspace.params)


def deploy(workspace: Workspace, servers: PrefectServers, *options: str) -> Any:
    return run_json(workspace, "segmill", "deploy", *options, servers=servers.env)


def status(workspace: Workspace, servers: PrefectServers) -> Any:
    return run_json(workspace, "segmill", "status", servers=servers.env)["schedule"]


def begin_run(servers: PrefectServers, **parameters: Any) -> FlowRun:
    """Start a run by hand."""
    with servers.client() as client:
        found = client.read_deployment_by_name(f"nightly/{MODEL}")
        return client.create_flow_run_from_deployment(found.id, parameters=parameters)


def wait_for_epochs(servers: PrefectServers, curves: Path, epochs: int) -> None:
    """Wait until a training's curve, below its line of names, has so many epochs."""
    until = time.monotonic() + 200
    while not curves.exists() or len(curves.read_text().splitlines()) < 1 + epochs:
        assert time.monotonic() < until, servers.said()
        time.sleep(0.2)


def names(runs: list[FlowRun]) -> list[str]:
    return [run.state.name for run in runs if run.state]


def all_ended(runs: list[FlowRun]) -> bool:
    return bool(runs) and all(run.state and run.state.is_final() for run in runs)


def heard_of(sink: Endpoint, since: int, verdict: str) -> list[str]:
    kinds = [json.loads(one.body) for one in sink.postings[since:]]
    return [one["data"]["model"] for one in kinds if one["type"] == f"segmill.{verdict}"]
