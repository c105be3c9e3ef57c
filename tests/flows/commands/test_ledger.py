"""`segmill ledger verify` and `segmill ledger adopt`: what they say, their exit codes and their objects."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.environment import tracking_uri
from segmill.data.versioning.versions import bring_data
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.promotion.heads import write_file
from segmill.promotion.keys import TRUSTED
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.rows import Entry
from segmill.workspace import Workspace
from tasks.register import model_name

DOCS = Path(__file__).parents[3] / "docs" / "json.md"


@pytest.fixture
def model(workspace: Workspace) -> str:
    """The name of a model whose version 1 serves by the workspace's ledger."""
    params = read_params(workspace.params)
    bring_data(workspace.root, params.data.path, params.data.remote)
    name, ledger = model_name(workspace, params), workspace_ledger(workspace.root)
    ledger.append(ledger.begin(name), Entry(action="promote", version="1", decision="PASS"))
    return name


def ask(workspace: Workspace, *arguments: str, code: int = 0) -> Any:
    """Return the object that the command prints, whose keys are those of the docs."""
    done = CliRunner().invoke(app, ["ledger", *arguments, "--json", "-w", str(workspace.root)])
    assert done.exit_code == code, (done.stderr, done.exception)
    said = json.loads(done.stdout)
    (line,) = re.findall(rf"^\| `ledger {arguments[0]}` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert set(said) == set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", line)))
    return said


def test_a_whole_ledger_is_said_and_a_changed_one_ends_with_1_and_says_where(workspace: Workspace, model: str) -> None:
    said = ask(workspace, "verify")
    address = f"sqlite:///{workspace.ledger}"
    assert said == {"ledger": address, "model": model, "rows": 1, "whole": True, "findings": []}
    done = CliRunner().invoke(app, ["ledger", "verify", "-w", str(workspace.root)])
    assert done.stdout == f"the ledger of {model} at {address} is whole: 1 rows\n"
    assert not (workspace.root / "mlflow.db").exists()

    with sqlite3.connect(workspace.ledger) as connection:
        connection.execute("UPDATE ledger_rows SET payload = replace(payload, 'PASS', 'FAIL')")
    (finding,) = ask(workspace, "verify", code=1)["findings"]
    assert finding == f"row 1 of {model} is not to be believed: its content was changed after it was written"


def test_without_trusted_keys_verify_says_why_nothing_is_believed(workspace: Workspace, model: str) -> None:
    (workspace.root / TRUSTED).unlink()
    (finding,) = ask(workspace, "verify", code=1)["findings"]
    assert f"which {workspace.root / TRUSTED} does not list (it lists none)" in finding


def test_a_ledger_is_adopted_for_a_reason_and_who_serves_stays(workspace: Workspace, model: str) -> None:
    client = MlflowClient(tracking_uri(workspace, read_params(workspace.params)))
    client.create_registered_model(model)
    for _ in range(2):
        client.create_model_version(model, "models")
    client.set_registered_model_alias(model, "champion", "2")
    client.set_registered_model_tag(model, "ledger", "another")
    done = CliRunner().invoke(app, ["ledger", "adopt", "--because", " ", "-w", str(workspace.root)])
    assert "nothing was given as the reason" in str(done.exception)

    said = ask(workspace, "adopt", "--because", "the first machine is gone")
    assert (said["row"], said["champion"]) == (2, "2") and "before, it was another" in said["says"][1]
    row = workspace_ledger(workspace.root).rows(model)[-1]
    assert (row.action, row.because, row.champion) == ("adopt", "the first machine is gone", "2")
    found = client.get_registered_model(model)
    assert str(found.aliases["champion"]) == "2"
    assert found.tags["ledger"] == workspace_ledger(workspace.root).named()
    assert ask(workspace, "verify")["rows"] == 2


def test_adopting_says_that_git_has_the_head_of_before(workspace: Workspace, model: str) -> None:
    """Where runs are not committed by segmill, a person has committed the file."""
    ledger = workspace_ledger(workspace.root)
    write_file(workspace.root, ledger.rows(model)[-1], "another", commit=True)
    set_params(workspace.params, ["git.commit=false"])
    command = ["ledger", "adopt", "--because", "moved", "-w", str(workspace.root)]
    assert "commit ledger_head.json, else nobody is promoted" in CliRunner().invoke(app, command).stdout
    set_params(workspace.params, ["git.commit=true"])
    assert "commit ledger_head.json" not in CliRunner().invoke(app, command).stdout
