"""Ends what a command started and left running, once the command itself is gone, however it ended. Light to import.

``python -P orphans.py TOKEN [FOLDER]`` watches the process that started it, until its standard input ends: that is gone
then, and so is its temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

STARTED_BY = "SEGMILL_STARTED_BY"  # a variable that all processes inherit from the one that started them
LOOK_EVERY_S = (1.0, 10.0)  # at first and at last: what stays starts soon, and a look costs some ms of a core
RUN_FOLDER = "sm-"  # how a run's own temporary folder begins, short for Ray's sockets
MARK = "started_by_segmill"  # a file in it, so that `segmill gc` knows it where nobody was left to delete it
# Characters: a socket's path may have 107, of which multiprocessing adds 32 to the folder for temporary files, Ray 68.
LONGEST_FOLDER, LONGEST_FOR_RAY = 75, 39
END_ALONE_S, TERMINATE_S, KILL_S = 1.0, 3.0, 2.0  # together within 10 s, and the last look

_watchers: list[subprocess.Popen[bytes]] = []  # it holds the pipe that ends with this process


def end_with_this_process(*, temporary_folder: bool = False) -> None:
    """Let what this process starts from here on end within 10 s of it, also where it is killed (SIGKILL).

    Ray's agents and Prefect's server would run on. A process of a session of its own sees a pipe end, which works on
    Linux and macOS; then it ends those that it knows by their process ids. Calling it again does nothing.

    ``temporary_folder``: give this process and its children a folder of their own for temporary files, Ray's session
    among them where its path is short enough, which ends with them.
    """
    if not _watchers:
        from segmill.credentials import without_credentials

        token = secrets.token_hex(8)
        command = [sys.executable, "-P", __file__, token, *(_own_folder() if temporary_folder else [])]
        _watchers.append(
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=without_credentials(),
            )
        )
        os.environ[STARTED_BY] = token


def is_watcher(process: psutil.Process) -> bool:
    """Tell whether a process is one that ends and deletes what another leaves."""
    with contextlib.suppress(psutil.Error):
        return __file__ in process.cmdline()[:3]
    return False


def temporary_top() -> Path:
    """Return where this machine's temporary files are, also in a run that has a temporary folder of its own there."""
    top = Path(tempfile.gettempdir())
    return top.parent if top.name.startswith(RUN_FOLDER) else top


def _own_folder() -> list[str]:
    """Make the folder and let temporary files go there; [] where its path would be too long for sockets."""
    folder = tempfile.mkdtemp(prefix=RUN_FOLDER)
    if len(folder) > LONGEST_FOLDER:
        os.rmdir(folder)
        return []
    if len(folder) > LONGEST_FOR_RAY:
        os.environ.setdefault("RAY_TMPDIR", tempfile.gettempdir())
    (Path(folder) / MARK).touch()
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    return [folder]


def _watch(token: str) -> None:
    """End all descendants of the process that started this one when it is gone.

    They are found by the token in their environment, and those that overwrite theirs, as Ray's agents do, by looking
    now and then whose children they are.
    """
    started: set[psutil.Process] = set()
    parent = psutil.Process(os.getppid())
    pause, longest = LOOK_EVERY_S
    while not select.select([sys.stdin], [], [], pause)[0]:
        started = {process for process in started if process.is_running()} | (_with_children([parent]) - {parent})
        pause = min(2 * pause, longest)
    started |= _with_children(process for process in psutil.process_iter() if _holds(process, token))
    _end(started - {psutil.Process()})


def _holds(process: psutil.Process, token: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.environ().get(STARTED_BY) == token)
    return False


def _with_children(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    found = set()
    for process in processes:
        found.add(process)
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found


def _end(left: set[psutil.Process]) -> None:
    """Wait for them to end by themselves; terminate, then kill those that do not, and what they started meanwhile."""
    steps: list[tuple[Callable[[psutil.Process], None], float]] = [
        (lambda process: None, END_ALONE_S),
        (psutil.Process.terminate, TERMINATE_S),
        (psutil.Process.kill, KILL_S),
    ]
    for end, patience in steps:
        for process in left:
            with contextlib.suppress(psutil.Error):
                end(process)
        left = _with_children(psutil.wait_procs(left, patience)[1])


if __name__ == "__main__":
    _watch(sys.argv[1])
    for folder in sys.argv[2:] * 5:  # what was just killed may have made a file meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            break
        time.sleep(0.5)
