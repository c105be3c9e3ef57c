"""Which process a run on a server belongs to, and whether that is gone. Light to import."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Tags of a run in MLflow, and labels in Prefect: whose it is, and when that was last alive (s since 1970).
TAG, ALIVE = "segmill.process", "segmill.alive"
BEAT_EVERY_S, DEAD_AFTER_S = 60, 900  # of a process of another machine, by that one's clock


def this_process() -> str:
    """Return a text that names this process among all of all machines: host, process id, when it began."""
    return process(os.getpid())


def process(pid: int) -> str:
    """Return the text that names a process of this machine, as ``this_process`` does."""
    return f"{socket.gethostname()} {pid} {_began(pid)}"


def beat() -> dict[str, str]:
    """Return what says that this process is alive now."""
    return {TAG: this_process(), ALIVE: f"{time.time():.0f}"}


def is_over(facts: Mapping[str, Any]) -> bool:
    """Tell whether the process of a run is gone, by the run's tags or labels.

    On this machine the process is looked for; on another it is gone when it last said long ago that it was alive, or
    far in the future: by a clock that is wrong nobody can be waited for.
    """
    named, alive = str(facts.get(TAG, "")), str(facts.get(ALIVE, ""))
    if named.partition(" ")[0] == socket.gethostname():
        return is_gone(named)
    return alive.isdigit() and abs(time.time() - int(alive)) > DEAD_AFTER_S


def is_gone(named: str) -> bool:
    """Tell whether the process that ``this_process`` named is known to be gone; False for one of another machine."""
    host, _, rest = named.partition(" ")
    pid, _, began = rest.partition(" ")
    return host == socket.gethostname() and pid.isdigit() and _began(int(pid)) != began


def _began(pid: int) -> str:
    """Say when a process began, on Linux by a clock that nobody sets: ticks since which boot; "" where it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        if not psutil.LINUX:
            return f"{process.create_time():.2f}"
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{ticks}@{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except (psutil.NoSuchProcess, OSError):
        return ""
