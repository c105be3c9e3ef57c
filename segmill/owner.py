"""Which process a run on a server belongs to, and whether that is gone. Light to import."""

from __future__ import annotations

import os
import socket
from pathlib import Path

TAG = "segmill.process"  # of a run in MLflow, and the name of a label in Prefect


def this_process() -> str:
    """Return a text that names this process among all of all machines: host, process id, when it began."""
    return f"{socket.gethostname()} {os.getpid()} {_began(os.getpid())}"


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
