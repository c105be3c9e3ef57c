from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mlflow import MlflowClient
from terminal import terminal

from flows.environment import prepare_environment, tracking_uri
from flows.standing import Standing, ask_registry, registry_asked
from segmill.data.versioning.versions import bring_data
from segmill.params import Params, read_params
from segmill.params_change import set_params
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.workspace import Workspace
from tasks.register import model_name

# Prints champion, challenger and whether the ensemble was judged, and whether a process asked the registry.
LOOK = """
import dataclasses, json, sys
from pathlib import Path
from flows.commands.options import open_workspace
from flows.standing import registry_asked
if __name__ == "__main__":
    with registry_asked(*open_workspace(Path(sys.argv[1]))) as asked:
        found = dataclasses.asdict(asked())
    print(json.dumps([found, "multiprocessing.popen_spawn_posix" in sys.modules]))
"""


@pytest.fixture
def params(workspace: Workspace) -> Params:
    """The settings of a workspace whose registry holds versions 1 and 2, the first as the champion."""
    params = read_params(workspace.params)
    prepare_environment(workspace, params)
    bring_data(workspace.root, params.data.path, params.data.remote)
    client, name = MlflowClient(tracking_uri(workspace, params)), model_name(workspace, params)
    client.create_registered_model(name)
    for miou in ("0.5", "0.6"):
        client.create_model_version(name, "models", tags={"test_miou": miou, "data_version": "0123"})
    client.set_registered_model_alias(name, "champion", "1")
    set_up(workspace.root)
    return params


def look(workspace: Workspace) -> tuple[Standing, bool]:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(workspace.root)], capture_output=True, text=True, check=True, env=terminal()
    )
    found, asked = json.loads(done.stdout)
    return Standing(**found), asked


def champion(standing: Standing) -> tuple[str, float, str | None]:
    assert standing.champion
    return standing.champion["version"], standing.champion["miou"], standing.champion["verdict"]


@pytest.mark.long
def test_the_registry_is_asked_again_where_somebody_wrote_to_it_and_else_not(
    workspace: Workspace, params: Params
) -> None:
    for _ in range(2):  # the first writes down who serves
        ask_registry(workspace, params)
    standing, asked_again = look(workspace)
    assert (champion(standing), standing.noticed, asked_again) == (("1", 0.5, None), [], False)

    client, name = MlflowClient(tracking_uri(workspace, params)), model_name(workspace, params)
    client.set_registered_model_alias(name, "champion", "2")
    standing, asked_again = look(workspace)
    assert (champion(standing), asked_again) == (("1", 0.5, None), True), "the ledger is the truth"
    assert "somebody else moved the champion" in standing.noticed[0]
    assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
    look(workspace)
    assert look(workspace)[1] is False

    book = workspace_ledger(workspace.root)
    book.append(book.begin(name), Entry(action="promote", version="2", decision="PASS"))
    assert champion(look(workspace)[0]) == ("2", 0.6, "PASS")
    assert str(client.get_model_version_by_alias(name, "champion").version) == "2"

    set_params(workspace.params, ["promotion.floor_miou=0.123"])
    with registry_asked(workspace, read_params(workspace.params)) as asked:
        assert champion(asked()) == ("2", 0.6, "PASS")
    kept = workspace.scratch / "standing.json"
    assert json.loads(kept.read_text())["champion"]["version"] == "2"
    kept.write_text(kept.read_text()[:30])
    assert champion(look(workspace)[0]) == ("2", 0.6, "PASS")
