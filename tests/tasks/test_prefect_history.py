"""Old flow runs at a real Prefect server: those of this model and workspace go, others and young ones stay."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segmill.workspace import Workspace
from tasks.prefect_history import has_old_runs

HOUR_S = 3600.0


def test_a_workspace_without_prefect_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    space = Workspace(tmp_path)
    assert not has_old_runs(space, time.time())
    space.prefect_home.mkdir(parents=True)
    with sqlite3.connect(space.prefect_home / "prefect.db") as database:
        database.execute("CREATE TABLE flow_run (end_time TEXT)")
        database.execute("INSERT INTO flow_run VALUES ('2026-01-02 03:04:05.000000')")
    assert has_old_runs(space, time.time()) and not has_old_runs(space, 0.0)
    (space.prefect_home / "prefect.db").write_bytes(b"another kind of file")
    assert has_old_runs(space, 0.0), "Prefect itself knows"


ASK = """
import json, sys
from pathlib import Path
from prefect import flow
from prefect.client.orchestration import get_client
from segmill.workspace import Workspace
from tasks.prefect_history import delete_old_runs, old_flow_runs

@flow(name="retrain", flow_run_name="{name}")
def retrain(name, folder):
    return None

space, model, later = Workspace(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
for name, folder in ((model + " data 0123", "/elsewhere"), ("retrain", str(space.root)), ("another", "/elsewhere")):
    retrain(name, folder)
young = old_flow_runs(space, model, later - 7200)
found = old_flow_runs(space, model, later)
delete_old_runs(found)
delete_old_runs(found)
left = old_flow_runs(space, model, later)
with get_client(sync_client=True) as client:
    names = [run.name for run in client.read_flow_runs(limit=200)]
print(json.dumps([[run.what for run in some] for some in (young, found, left)] + [names]))
"""


@pytest.mark.slow
@pytest.mark.long
def test_old_runs_of_this_model_go(tmp_path: Path, servers: dict[str, str]) -> None:
    model = f"segmill-{os.getpid()}-{time.time_ns()}"
    arguments = [sys.executable, "-c", ASK, str(tmp_path / "space"), model, str(time.time() + HOUR_S)]
    environment = {**os.environ, **servers, "PREFECT_HOME": str(tmp_path / "prefect")}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    young, found, left, names = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted([f"flow run {model} data 0123", "flow run retrain"])
    assert (young, left) == ([], []) and "another" in names and f"{model} data 0123" not in names
