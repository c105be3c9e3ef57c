"""One writer at a time in a workspace: who it is, and how another leaves or waits."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from segmill import progress
from segmill.errors import InfrastructureError
from segmill.workspace import Workspace

PROBE_EVERY_S, PROBES = 0.1, 5  # a writer that begins or ends has named itself, or is gone, by then


class Part(StrEnum):
    """What one writer holds: the labelled set, or everything that is made from it."""

    DATA = "data"
    WORKSPACE = "workspace"


class WorkspaceBusy(InfrastructureError):
    """Another process writes to the workspace. Exit code 4: try again."""


def writer(workspace: Workspace, part: Part) -> str:
    """Say who writes ``part`` right now, in a sentence without its full stop; "" where nobody does."""
    lock, note, _ = _files(workspace, part)
    try:
        file = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _sentence(workspace, note)
    finally:
        os.close(file)
    return ""


@contextmanager
def writing(
    workspace: Workspace,
    part: Part,
    command: str,
    *,
    wait: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Iterator[None]:
    """Be the only writer of ``part`` while the block runs.

    The operating system holds the lock (flock) and frees it with the process, however that ends. A process that was
    started inside the block, and the same process again, count as the holder. Who needs both parts takes
    ``Part.WORKSPACE`` first.

    Args:
        command: what the others are to read, such as ``segmill retrain``.
        wait: until the other writer is done, instead of raising.
        say: is given the sentence about the other writer before the wait begins.

    Raises:
        WorkspaceBusy: another process holds it, named by command, process id and begin.
    """
    path, note, variable = _files(workspace, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # no process that is started meanwhile inherits it
    try:
        if not _free(lock) and _is_ours(note, variable):
            yield
            return
        if not _soon_free(lock):
            sentence = _sentence(workspace, note)
            if not wait:
                raise WorkspaceBusy(f"{sentence}; wait until it is done, or add --wait")
            say(f"{sentence}; waiting until it is done")
            fcntl.flock(lock, fcntl.LOCK_EX)
        token = secrets.token_hex(8)
        progress.report(
            note, token=token, command=command, pid=os.getpid(), host=socket.gethostname(), since=time.time()
        )
        os.environ[variable] = token
        try:
            yield
        finally:
            os.environ.pop(variable, None)
            note.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _files(workspace: Workspace, part: Part) -> tuple[Path, Path, str]:
    """Return the file that is locked, the note that says by whom, and the variable that tells its children."""
    folder = workspace.scratch / "locks"
    return folder / f"{part}.lock", folder / f"{part}.json", f"SEGMILL_HOLDS_{part.upper()}"


def _free(lock: int) -> bool:
    """Take the lock where nobody holds it; taking it twice is as good as once."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _soon_free(lock: int) -> bool:
    """As ``_free``, patient with who only looks who writes."""
    for _ in range(PROBES):
        if _free(lock):
            return True
        time.sleep(PROBE_EVERY_S)
    return False


def _is_ours(note: Path, variable: str) -> bool:
    return bool(token := os.environ.get(variable)) and (_read(note) or {}).get("token") == token


def _sentence(workspace: Workspace, note: Path) -> str:
    facts = _read(note)
    if facts is None:
        return f"another process writes to {workspace.root}"
    began = datetime.fromtimestamp(facts["since"])
    since = began.strftime("%H:%M:%S" if began.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S")
    where = "" if facts["host"] == socket.gethostname() else f" on {facts['host']}"
    return f"`{facts['command']}` has been running in {workspace.root} since {since} (process {facts['pid']}{where})"


def _read(note: Path) -> dict[str, Any] | None:
    for _ in range(PROBES):
        if (facts := progress.read(note)) is not None:
            return facts
        time.sleep(PROBE_EVERY_S)
    return None
