"""MLflow is away for seconds, or until the run is over: the whole curve and the end of the run arrive all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doors import Door, door_before
from mlflow import MlflowClient
from shared_servers import serving

from segmill import owner, tracking
from segmill.abandoned import end_abandoned_runs
from segmill.models.curves import write_curves
from segmill.unsent import Update, keep, kept

ROWS = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 7)]


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Door]:
    """A door before MLflow's server."""
    options = ("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path))
    with serving("mlflow", "server", "--workers", "1", *options, "--port") as uri, door_before(uri) as door:
        yield door


def grow(path: Path, rows: int) -> None:
    write_curves(path, ROWS[:rows])


def steps(uri: str, run_id: str) -> list[int]:
    return [value.step for value in MlflowClient(uri).get_metric_history(run_id, "loss")]


@pytest.mark.slow
@pytest.mark.long
def test_a_server_that_is_gone_for_a_while_gets_the_whole_curve_and_the_end(
    mlflow: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is back before the run is over, once only later: then the next command sends the rest."""
    monkeypatch.setattr(tracking, "FOLLOW_INTERVAL_S", 0.2)
    uri, growing, unsent = mlflow.url, tmp_path / "curves.csv", tmp_path / "unsent"
    with (
        tracking.open_run(uri, "brain", "data", ["fpn"], unsent) as run,
        tracking.following(run, "fpn", growing, tmp_path / "none"),
    ):
        grow(growing, 2)
        wait_until(lambda: steps(uri, run.members["fpn"]) == [1, 2])
        mlflow.set("shut")
        grow(growing, 4)
        time.sleep(3)
        mlflow.set("open")
        wait_until(lambda: steps(uri, run.members["fpn"]) == [1, 2, 3, 4])
        mlflow.set("shut")
        grow(growing, 6)
    assert tracking.send_kept(uri, unsent) == 3, "the rest of the curve and two ends"
    mlflow.set("open")
    assert tracking.send_kept(uri, unsent) == 0
    assert steps(uri, run.members["fpn"]) == [1, 2, 3, 4, 5, 6]
    ended = [MlflowClient(uri).get_run(run_id).info for run_id in (run.id, run.members["fpn"])]
    assert [info.status for info in ended] == ["FINISHED", "FINISHED"]
    assert not list(unsent.iterdir())


def test_a_step_that_is_tried_again_sends_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FOLLOW_INTERVAL_S", 0.05)
    uri, growing = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "curves.csv"
    with tracking.open_run(uri, "brain", "data", ["fpn"], tmp_path / "unsent") as run:
        for rows in (2, 4):
            with tracking.following(run, "fpn", growing, tmp_path / "none"):
                grow(growing, rows)
                wait_until(lambda rows=rows: len(steps(uri, run.members["fpn"])) == rows)
    assert steps(uri, run.members["fpn"]) == [1, 2, 3, 4]


def test_updates_go_to_the_server_they_are_for_and_once_alone(tmp_path: Path) -> None:
    uri, unsent = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "unsent"
    run_id = tracking.start_run(uri, "brain", "data")
    update = Update(run_id, [("loss", 0.5, 1000, 1, None), ("loss", float("inf"), 1000, 2, None)], "FAILED", 2000)
    for _ in range(2):
        keep(unsent, uri, update)
    keep(unsent, uri, Update("0" * 32, status="FINISHED", ended_ms=1))
    keep(unsent, "http://me:secret@elsewhere", update)
    assert all("secret" not in path.read_text() for path in unsent.iterdir())
    assert tracking.send_kept(uri, unsent) == 0, "what is said of a run that was deleted is dropped"
    assert [(value.step, value.timestamp) for value in MlflowClient(uri).get_metric_history(run_id, "loss")] == [
        (1, 1000), (2, 1000),
    ]  # fmt: skip
    info = MlflowClient(uri).get_run(run_id).info
    assert (info.status, info.end_time) == ("FAILED", 2000)
    assert [found.run_id for _, found in kept(unsent, "http://elsewhere")] == [run_id], "whoever logs in there"


def test_runs_of_processes_that_are_gone_are_ended_and_no_others(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert end_abandoned_runs(uri, "brain") == 0
    code = (
        "import sys\nfrom segmill import tracking\n"
        "parent = tracking.start_run(sys.argv[1], 'brain', 'data')\n"
        "print(parent, tracking.start_run(sys.argv[1], 'brain', 'fpn', parent=parent))"
    )
    killed = subprocess.check_output([sys.executable, "-c", code, uri], text=True, env=dict(os.environ)).split()
    alive = tracking.start_run(uri, "brain", "data")
    elsewhere = tracking.start_run(uri, "brain", "data", tags={})
    client = MlflowClient(uri)
    nested = tracking.start_run(uri, "brain", "fpn", parent=elsewhere)
    for run_id in (elsewhere, nested):
        client.set_tag(run_id, owner.TAG, "elsewhere 1 1000")
    by_hand = client.create_run(client.get_run(alive).info.experiment_id).info.run_id
    assert end_abandoned_runs(uri, "brain") == 2
    found = {run_id: client.get_run(run_id).info.status for run_id in (*killed, alive, elsewhere, nested, by_hand)}
    assert list(found.values()) == ["KILLED", "KILLED", "RUNNING", "RUNNING", "RUNNING", "RUNNING"]
    client.set_tag(elsewhere, owner.ALIVE, str(int(time.time() - owner.DEAD_AFTER_S / 2)))
    assert end_abandoned_runs(uri, "brain") == 0, "it may be alive, on another machine"
    client.set_tag(elsewhere, owner.ALIVE, str(int(time.time() - 2 * owner.DEAD_AFTER_S)))
    assert end_abandoned_runs(uri, "brain") == 2, "and what is nested in it"
    ahead = tracking.start_run(uri, "brain", "data")
    client.set_tag(ahead, owner.TAG, "elsewhere 1 1000")
    client.set_tag(ahead, owner.ALIVE, str(int(time.time() + 2 * 86400)))
    assert end_abandoned_runs(uri, "brain") == 1, "it is not taken for running until its wrong clock is right"
    client.set_tag(alive, owner.ALIVE, "1000")
    assert end_abandoned_runs(uri, "brain") == 0, "its process is here: MLflow was away when it said so"


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    host, pid, started = owner.this_process().split()
    assert not owner.is_gone(f"{host} {pid} {started}")
    assert owner.is_gone(f"{host} {pid} 1{started}") and not owner.is_gone(f"elsewhere {pid} 1{started}")
    code = "from segmill.owner import this_process; print(this_process(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    named = child.stdout.readline().strip()
    assert named.startswith(f"{host} {child.pid} ") and not owner.is_gone(named)
    child.kill()
    wait_until(lambda: owner.is_gone(named))  # a zombie: nobody has asked yet how it ended
    child.wait()
    assert owner.is_gone(named)
    assert not owner.is_gone("") and not owner.is_gone("nonsense") and not owner.is_gone(f"{host} x y")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
