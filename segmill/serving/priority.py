"""Loading at low priority: a version that loads leaves the cores to the one that answers."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

NICER = 10  # a tenth of the time of a thread that answers, where both want the same core
LEAST = 19
TASKS = Path("/proc/self/task")


def at_low_priority(load: Callable[[], Loaded]) -> Loaded:
    """Call ``load`` in a thread of its own of low priority, and return what it returns; raises what it raises.

    On Linux the priority is a thread's own, and passes on to those that it starts. Those that stay, OpenVINO's for
    example, get this thread's priority afterwards; without CAP_SYS_NICE or a limit of RLIMIT_NICE they can't.
    Elsewhere the priority stays as it is.
    """
    done: Future[Loaded] = Future()

    def run() -> None:
        try:
            if sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, 0, min(LEAST, os.getpriority(os.PRIO_PROCESS, 0) + NICER))
            done.set_result(load())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="loading", daemon=True)
    thread.start()
    try:
        return done.result()
    finally:
        thread.join()
        if sys.platform == "linux":
            _as_this_one()


def _as_this_one() -> None:
    """Give each thread of this process that has a lower priority than this one the priority of this one."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    for task in TASKS.iterdir():
        with suppress(OSError):  # it ended meanwhile, or this process may not
            if os.getpriority(os.PRIO_PROCESS, int(task.name)) > usual:
                os.setpriority(os.PRIO_PROCESS, int(task.name), usual)
