"""Prefect's server falls silent in the middle of a run, or the run is killed: the truth is said, and nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doors import Door, door_before
from shared_servers import shared_server

pytestmark = pytest.mark.slow

PROMISED_S = 60

FLOW = """
import sys, time
from pathlib import Path
from prefect import flow, task
from flows.commands import cli
from flows.prefect_server import claim_run, run_flow, start_server
from segmill.errors import InputError

ended, folder, way = {}, Path(sys.argv[1]), sys.argv[2]

@task
def step(name):
    (folder / name).touch()
    while not (folder / "on").exists():
        time.sleep(0.1)
    return name

@flow(persist_result=False)
def work():
    claim_run()
    found = [step("one"), step.submit("two").result()]
    if way == "raises":
        raise InputError("members.fpn.lr is wrong", "write 0.1")
    ended[str(folder)] = result = {"steps": found, "warnings": ["one before"]}
    return result

def command():
    start_server()
    print(run_flow(work, ended, str(folder)), flush=True)

cli.app = lambda *_, **__: command()
cli.main()
"""


@pytest.fixture(scope="module")
def api() -> Iterator[Door]:
    """A door before a Prefect server."""
    with door_before(shared_server("prefect")) as door:
        yield door


def begin(api: Door, folder: Path, way: str) -> subprocess.Popen[str]:
    """Start the flow and return it in the middle of its first step."""
    folder.mkdir(parents=True)
    own = os.environ | {"PREFECT_API_URL": api.url, "PREFECT_HOME": str(folder), "PREFECT_CLIENT_MAX_RETRIES": "3"}
    process = subprocess.Popen(
        [sys.executable, "-c", FLOW, folder, way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own
    )
    while not (folder / "one").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    ("way", "code", "said"),
    [
        ("ends", 0, "{'steps': ['one', 'two'], 'warnings': ['one before', \"Prefect's server (http://127.0.0.1:"),
        ("raises", 1, "error members.fpn.lr is wrong; write 0.1\n"),
    ],
)
@pytest.mark.long
def test_a_flow_whose_server_died_ends_with_the_truth_and_no_process_stays(
    api: Door, tmp_path: Path, way: str, code: int, said: str
) -> None:
    process = begin(api, tmp_path / way, way)
    api.set("shut")
    try:
        began = time.monotonic()
        (tmp_path / way / "on").touch()
        out, err = process.communicate(timeout=2 * PROMISED_S)
    finally:
        api.set("open")
    assert process.returncode == code, err
    assert said in out + err
    assert time.monotonic() - began < PROMISED_S
    assert "Traceback" not in err and "Error logging" not in err and "EventsWorker" not in err


def test_a_server_that_is_not_there_is_said_in_a_sentence_before_anything_runs(tmp_path: Path) -> None:
    own = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FLOW, tmp_path, "ends"], capture_output=True, text=True, env=own, timeout=PROMISED_S
    )
    assert done.returncode == 4
    assert done.stderr.startswith("error Prefect's server (http://127.0.0.1:9/api) does not answer; start it, or unset")
    assert not (tmp_path / "one").exists()


@pytest.mark.long
def test_flow_runs_of_processes_that_are_gone_are_ended_and_no_others(
    api: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.prefect_server import GONE, end_abandoned_flow_runs

    with temporary_settings({PREFECT_API_URL: api.url}), get_client(sync_client=True) as client:
        end_abandoned_flow_runs(tmp_path)  # those of the tests before
        before = {run.id for run in client.read_flow_runs()}
        killed, alive = (begin(api, tmp_path / name, "ends") for name in ("killed", "alive"))
        killed.kill()
        killed.communicate()
        assert end_abandoned_flow_runs(tmp_path) == 1
        assert end_abandoned_flow_runs(tmp_path) == 0
        runs = {run.state.type.value: run for run in client.read_flow_runs() if run.state and run.id not in before}
        assert runs["CRASHED"].state.message == GONE
        assert "RUNNING" in runs
        tasks = [task for task in client.read_task_runs() if task.flow_run_id == runs["CRASHED"].id]
        assert [task.state.type.value for task in tasks] == ["CRASHED"]
    (tmp_path / "alive" / "on").touch()
    alive.communicate(timeout=PROMISED_S)
    assert alive.returncode == 0
