"""Ends a training that makes no progress, with the stack of each thread in a file, so that it is tried again."""

from __future__ import annotations

import contextlib
import faulthandler
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from segmill import progress
from segmill.alongside import alongside

SLOWEST_VALIDATION = 10  # times the steps of its epoch
FEED_EVERY_S = 1.0  # at most: to arm the timer costs 0.1 ms
LOOK_EVERY_S = 1.0
# A process that is stopped as a whole can't end itself: whoever waits for it does, so much later.
LATER_S = 20.0


def stacks_path(progress_path: Path) -> Path:
    """Return where the stacks of a training that made no progress are written, one after the other."""
    return progress_path.with_suffix(".stacks")


class Watchdog:
    """Ends this process with exit code 1, its stacks in ``stacks``, where it is not fed for ``limit_s`` seconds.

    The timer is a thread of C, which needs no lock of Python's: it works where all threads wait (faulthandler). None
    for ``limit_s`` watches nothing.
    """

    def __init__(self, stacks: Path, limit_s: float | None):
        self._limit_s = limit_s
        self._file = stacks.open("a") if limit_s else None
        self._every_s = min(FEED_EVERY_S, (limit_s or 0) / 10)
        self._fed_at = -FEED_EVERY_S

    def feed(self, *, at_least_s: float = 0.0) -> None:
        """Say that there was progress; the next may take ``limit_s``, or ``at_least_s`` where that is longer."""
        now = time.monotonic()
        if self._file and self._limit_s and (at_least_s or now - self._fed_at >= self._every_s):
            self._fed_at = now
            faulthandler.dump_traceback_later(max(self._limit_s, at_least_s), exit=True, file=self._file)

    def stop(self) -> None:
        if self._file:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()


@contextlib.contextmanager
def ending_stopped(progress_path: Path, limit_s: float | None) -> Iterator[None]:
    """While the block runs, kill the process that writes ``progress_path`` where it can't end itself.

    It must be of this machine; of another one this says nothing.
    """
    killed: set[int] = set()

    def look(over: threading.Event) -> None:
        seen: dict[str, Any] = {}
        changed_at = time.monotonic()
        while not over.wait(LOOK_EVERY_S):
            facts = progress.read(progress_path) or {}
            if facts != seen:
                seen, changed_at = facts, time.monotonic()
            pid, here = facts.get("pid"), facts.get("host") == socket.gethostname()
            allowed = max(limit_s or 0.0, facts.get("pause_s", 0.0)) + LATER_S
            if pid and here and pid not in killed and time.monotonic() - changed_at > allowed:
                killed.add(pid)
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    if process.create_time() < facts["time"]:  # not another one that was given its number since
                        process.kill()

    with alongside(look) if limit_s else contextlib.nullcontext():
        yield
