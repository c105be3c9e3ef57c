"""A PostgreSQL of its own for as long as a block runs, on a Unix socket, stopped by its process.

Needs `initdb` and `pg_ctl`. The server refuses to run as root; then it runs as the user nobody.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def postgres() -> Iterator[str]:
    """Start PostgreSQL in a temporary folder and yield its SQLAlchemy URL; stop it and remove the folder afterwards."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:  # a socket's path has room for 107 characters
        folder, owner = Path(name), _owner()
        if owner:
            shutil.chown(folder, owner["user"], owner["group"])
        data, log = folder / "data", folder / "log"
        _run(["initdb", "-D", data, "-A", "trust", "-U", "segmill", "-N"], owner)
        options = f"-c listen_addresses='' -k {folder} -F"  # -F: processes are killed here, machines are not
        _run(["pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start"], owner)
        try:
            yield f"postgresql://segmill@/postgres?host={folder}"
        finally:
            _run(["pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], owner)


def _owner() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _run(command: list[str | Path], owner: dict[str, Any]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd="/", **owner)
    assert done.returncode == 0, done.stderr
