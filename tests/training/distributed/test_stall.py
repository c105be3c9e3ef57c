"""Processes that make no progress, in their code or stopped as a whole: ended, with their stacks where they can say."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from segmill import progress
from segmill.training.distributed import stall

BEGIN = """
import threading, time
from pathlib import Path
from segmill.training.distributed.stall import Watchdog

dog = Watchdog(Path({stacks!r}), 1.0)
"""


def run(tmp_path: Path, body: str) -> tuple[int, str]:
    """Run a program that has a ``dog`` of one second; return its exit code and the stacks that it left."""
    stacks = tmp_path / "member.stacks"
    program = BEGIN.format(stacks=str(stacks)) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    return done.returncode, stacks.read_text()


def test_a_process_that_waits_for_ever_ends_and_says_where(tmp_path: Path) -> None:
    code, stacks = run(
        tmp_path,
        """
        def wait_for_a_lock_that_nobody_gives_back():
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()

        dog.feed()
        wait_for_a_lock_that_nobody_gives_back()
        """,
    )
    assert code == 1
    assert "Timeout" in stacks and "wait_for_a_lock_that_nobody_gives_back" in stacks


def test_one_that_is_fed_lives_as_does_one_that_may_pause_and_one_without_a_dog(tmp_path: Path) -> None:
    code, stacks = run(
        tmp_path,
        """
        for _ in range(200):
            dog.feed()
            time.sleep(0.01)
        dog.feed(at_least_s=30)
        time.sleep(1.5)
        dog.feed(at_least_s=0.1)
        dog.stop()
        time.sleep(1.5)
        """,
    )
    assert (code, stacks) == (0, "")


@pytest.mark.parametrize("limit_s", [0.5, None])
def test_a_process_that_is_stopped_as_a_whole_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float | None
) -> None:
    monkeypatch.setattr(stall, "LATER_S", 0.5)
    monkeypatch.setattr(stall, "LOOK_EVERY_S", 0.05)
    note = tmp_path / "member.json"
    with psutil.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        progress.report(note, pid=process.pid, host=socket.gethostname(), time=time.time() + 1)
        began = time.monotonic()
        with stall.ending_stopped(note, limit_s):
            while process.poll() is None and time.monotonic() < began + (20 if limit_s else 1.5):
                time.sleep(0.05)
        if (ended := process.poll()) is None:
            process.kill()
    assert ended == (None if limit_s is None else -signal.SIGKILL)
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"time": 0.0}, {"pause_s": 60.0}, {"pid": None}])
def test_no_other_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, object]) -> None:
    monkeypatch.setattr(stall, "LATER_S", 0.1)
    monkeypatch.setattr(stall, "LOOK_EVERY_S", 0.05)
    note = tmp_path / "member.json"
    with psutil.Popen(["sleep", "60"]) as process:
        facts = {"pid": process.pid, "host": socket.gethostname(), "time": time.time() + 1}
        progress.report(note, **{**facts, **other})
        with stall.ending_stopped(note, 0.1):
            time.sleep(0.8)
        ended = process.poll()
        process.kill()
    assert ended is None
