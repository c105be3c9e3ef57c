"""What the deployed flow decides without Prefect's server: which run is covered, and how a stopped one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.nightly import covered
from flows.stops import WORKER_GONE
from segmill.promotion.lease import leased

MODEL = "segmill-brain"
STUCK = """
import signal, sys, time
from flows import stops
stops.PATIENCE_S = 1.0
signal.signal(signal.SIGTERM, lambda *_: None)  # as where a library waits and no Python code runs
with stops.Stops(float(sys.argv[1]) or None):
    print("runs", flush=True)
    while True:
        time.sleep(0.1)
"""
LISTENS = """
import signal, sys, time
from flows import stops
class Stopped(BaseException): pass
def stop(*_): raise Stopped
signal.signal(signal.SIGTERM, stop)
try:
    with stops.Stops(None) as stopping:
        stopping.lease_lost()
        time.sleep(60)
except Stopped:
    print(type(stopping.error()).__name__, stopping.error())
time.sleep(2 * stops.PATIENCE_S if len(sys.argv) > 1 else 0)
"""


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.db'}"


def due(before: timedelta) -> datetime:
    return datetime.now(UTC) - before


def test_a_run_is_skipped_where_one_that_began_after_it_was_due_did_the_same_work(tmp_path: Path) -> None:
    early = due(timedelta(hours=2))
    with leased(url(tmp_path), MODEL, "nightly run bold-owl") as lease:
        assert covered(lease, "a deployment", [], early) == "", "nobody ran before"
        lease.complete("a deployment")
    with leased(url(tmp_path), MODEL, "nightly run shy-cat") as lease:
        assert "skipped: nightly run bold-owl, which began at" in covered(lease, "a deployment", [], early)
        assert covered(lease, "a deployment", ["train.seed=1"], early) == "", "it asks for something else"
        assert covered(lease, "another deployment", [], early) == ""
        assert covered(lease, "a deployment", [], due(timedelta())) == "", "it was due after the other began"
        assert covered(lease, "a deployment", [], due(timedelta(seconds=30))) == "", "two clocks may differ by so much"


def test_a_run_that_failed_covers_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), leased(url(tmp_path), MODEL, "nightly run bold-owl"):
        raise ZeroDivisionError
    with leased(url(tmp_path), MODEL, "nightly run shy-cat") as lease:
        assert covered(lease, "a deployment", [], due(timedelta(hours=2))) == ""


@pytest.mark.parametrize("hours", [0.0, pytest.param(0.5 / 3600, marks=pytest.mark.long)])
def test_a_process_that_does_not_obey_is_cut_off(hours: float) -> None:
    own = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(hours)], stdout=subprocess.PIPE, text=True, env=own)
    assert process.stdout and process.stdout.readline() == "runs\n"
    began = time.monotonic()
    if not hours:
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    assert time.monotonic() - began < 30


@pytest.mark.long
def test_an_alarm_that_a_library_sets_at_each_signal_aborts_nothing() -> None:
    """As Ray's handler does: it would abort the process before Prefect's server hears how the run ended."""
    alarmed = STUCK.replace("lambda *_: None", "lambda *_: signal.alarm(3)").replace(
        "PATIENCE_S = 1.0", "PATIENCE_S = 6.0"
    )
    assert alarmed.count("alarm(3)") == alarmed.count("6.0") == 1
    own = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    process = subprocess.Popen([sys.executable, "-c", alarmed, "0"], stdout=subprocess.PIPE, text=True, env=own)
    assert process.stdout and process.stdout.readline() == "runs\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
    assert process.wait(timeout=60) == 1, "it is cut off; SIGALRM would be -14"


@pytest.mark.parametrize("argument", [[], pytest.param(["stays"], marks=pytest.mark.long)])
def test_a_run_whose_lease_was_lost_says_so_and_what_obeys_is_not_cut_off(argument: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LISTENS, *argument], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "LeaseLost the run was stopped: another run took its lease over, since it was not heard of for too long\n"
    )


WORKER = """
import subprocess, sys, time
with open(sys.argv[2], "w") as said:
    subprocess.Popen([sys.executable, "-c", sys.argv[3]], stdout=said)
    time.sleep(600)
"""


def test_a_run_ends_soon_after_the_worker_that_started_it(tmp_path: Path) -> None:
    program, said = tmp_path / "prefect", tmp_path / "said"
    program.write_text(WORKER)
    code = LISTENS.replace("stopping.lease_lost()", 'print("runs", flush=True)')
    worker = subprocess.Popen([sys.executable, str(program), "worker", str(said), code])
    until = time.monotonic() + 60
    while not (said.exists() and "runs" in said.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    worker.kill()
    worker.wait()
    while "is gone" not in said.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    assert said.read_text().splitlines() == [
        "runs",
        f"InfrastructureError the run was stopped: {WORKER_GONE}",
    ]
