"""Commands of the environment as a person types them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmill.workspace import Workspace

BIN = Path(sys.executable).parent
NICENESS = "RAY_worker_niceness"


def terminal(servers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a new terminal: none that a test before left, but those of ``servers``."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    own[NICENESS] = os.environ[NICENESS]
    return {**own, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "300", **(servers or {})}


def run(
    workspace: Workspace, *command: str, code: int | tuple[int, ...] = 0, servers: Mapping[str, str] | None = None
) -> str:
    """Run a command in the workspace and return what it printed; ``code``: how it may end."""
    return "".join(_run(workspace, *command, code=code, servers=servers))


def run_json(workspace: Workspace, *command: str, servers: Mapping[str, str] | None = None) -> Any:
    """Run a command in the workspace and return the object that it prints with ``--json``."""
    return json.loads(_run(workspace, *command, "--json", servers=servers)[0])


def _run(
    workspace: Workspace, *command: str, code: int | tuple[int, ...] = 0, servers: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Return what a command printed to standard output and to standard error."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        env=terminal(servers),
    )
    said = done.stdout + done.stderr
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), said
    assert "Traceback" not in said
    return done.stdout, done.stderr


def shown(*command: str, columns: int = 80, rows: int = 24, cwd: Path | None = None) -> tuple[str, int]:
    """Run a command in a pseudo-terminal; return all that was sent there, escapes included, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    own = {name: value for name, value in terminal().items() if name not in ("COLUMNS", "LINES")}
    environment = {**own, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 2**16)
        except OSError:  # Linux says so that no process has the terminal any more
            break
        if not part:
            break
        said += part
    os.close(ours)
    return said.decode(errors="replace"), process.wait()


def states(said: str) -> dict[str, str]:
    """Return what became of each stage, by the last line that says so."""
    return dict(re.findall(r"^([\w@-]+): (fresh|restored|ran|failed)\b", said, re.MULTILINE))
