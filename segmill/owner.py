"""Which process a run on a server belongs to, and whether that is gone. Light to import."""

from __future__ import annotations

import os
import socket

TAG = "segmill.process"  # of a run in MLflow, and the name of a label in Prefect
SAME_START_S = 60  # a process id is not given again within this; a clock may be set meanwhile


def this_process() -> str:
    """Return a text that names this process among all of all machines: host, process id, start in s since 1970."""
    import psutil

    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def is_gone(named: str) -> bool:
    """Tell whether the process that ``this_process`` named is known to be gone; False for one of another machine."""
    import psutil

    host, _, rest = named.partition(" ")
    pid, _, started = rest.partition(" ")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        found = psutil.Process(int(pid))
        return bool(found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - float(started)) > SAME_START_S)
    except psutil.NoSuchProcess:
        return True
