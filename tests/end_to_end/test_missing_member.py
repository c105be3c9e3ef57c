"""A member that fails for good: the run ends, or continues without it where params.yaml allows, and says so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from terminal import run, run_json, states

from segmill.promotion.ledger import workspace_ledger
from segmill.workspace import Workspace

SENTENCE = "Member unet failed and is not in the ensemble: "


@pytest.mark.slow
@pytest.mark.fault
def test_the_ensemble_continues_without_it_only_where_min_members_allows(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], servers: dict[str, str]
) -> None:
    workspace = brain_workspace(tmp_path)
    change(workspace, "members", "unet", lr=1e30)  # its loss is not finite
    said = run(workspace, "segmill", "retrain", code=1, servers=servers)
    found = states(said)
    assert (found["finetune@fpn"], found["finetune@unet"]) == ("ran", "failed")
    assert "ensemble" not in found and "loss" in said.splitlines()[-1]
    change(workspace, "ensemble", min_members=1)
    said = run(workspace, "segmill", "retrain", servers=servers)
    found = states(said)
    assert (found["finetune@fpn"], found["finetune@unet"], found["promote"]) == ("fresh", "failed", "ran")
    assert SENTENCE in said
    assert list(json.loads(workspace.metrics.read_text())["members"]) == ["fpn"]
    assert SENTENCE in workspace.page.read_text()
    verdict = workspace_ledger(workspace.root, None).rows("segmill-brain")[-1]
    assert any(reason.startswith(SENTENCE) for reason in verdict.reasons)
    assert list(verdict.facts["missing_members"]) == ["unet"]
    assert statuses(workspace)["unet"] == ["FAILED", "FAILED"] and statuses(workspace)["fpn"][-1] == "FINISHED"
    state = run_json(workspace, "segmill", "status")["stages"]
    assert (state["finetune@fpn"]["state"], state["finetune@unet"]["state"]) == ("fresh", "stale")
    assert "differ" not in run(workspace, "segmill", "verify", "segmill-brain/1", "--quick")
    change(workspace, "members", "unet", lr=0.003)
    found = states(run(workspace, "segmill", "retrain", code=(0, 3), servers=servers))
    assert (found["finetune@fpn"], found["finetune@unet"], found["ensemble"]) == ("fresh", "ran", "ran")
    assert list(json.loads(workspace.metrics.read_text())["members"]) == ["fpn", "unet"]


def change(workspace: Workspace, *block: str, **values: float) -> None:
    """Set keys of a block of params.yaml."""
    yaml = YAML()
    params = yaml.load(workspace.params)
    found = params
    for name in block:
        found = found.setdefault(name, {})
    found.update(values)
    yaml.dump(params, workspace.params)


def statuses(workspace: Workspace) -> dict[str, list[str]]:
    """Return the states of MLflow's runs by their names, in the order they began."""
    found: dict[str, list[str]] = {}
    with sqlite3.connect(workspace.root / "mlflow.db") as database:
        for name, status in database.execute("select name, status from runs order by start_time"):
            found.setdefault(name, []).append(status)
    return found
