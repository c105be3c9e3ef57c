"""A folder changed by plan: prepared in a hidden folder beside it, put in place wholly, whatever interrupts.

Killed before the plan is written, nothing has happened; killed after it, ``finish`` carries it to its end. So too where
the power fails: what a plan names is on the disk before the plan does, and what it did before it goes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from segmill.errors import InputError
from segmill.files import flush, flush_file_system, write_atomically

PLAN_FILE = "plan.json"


def hidden_folder(folder: Path) -> Path:
    """Return where changes of ``folder`` are prepared and noted: beside it, on the same file system."""
    return folder.with_name(f".{folder.name}.change")


def interrupted(folder: Path) -> bool:
    """Tell whether a planned change of ``folder`` was not carried to its end."""
    return (hidden_folder(folder) / PLAN_FILE).is_file()


def finish(folder: Path) -> None:
    """Carry an interrupted change to its end, or clear away one that was never planned."""
    if hidden_folder(folder).is_dir():
        with _alone(folder):
            _apply(folder)
            sweep(folder)


@contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """Give an empty folder to prepare a change of ``folder`` in, for the block alone; what it leaves is cleared away.

    An earlier change is finished first. InputError while another process is at it.
    """
    with _alone(folder):
        _apply(folder)
        sweep(folder)
        draft = make_hidden_folder(folder) / "new"
        draft.mkdir()
        try:
            yield draft
        finally:
            if not interrupted(folder):
                sweep(folder)


def commit(folder: Path, *, remove: Sequence[str], last: str = "") -> None:
    """Put what was drafted into ``folder`` and take the files ``remove`` (relative paths) out.

    ``last``: the file that is put in place after all others. Call it inside ``drafting``.
    """
    flush_file_system(folder.parent)
    write_atomically(hidden_folder(folder) / PLAN_FILE, json.dumps({"remove": list(remove), "last": last}))
    _apply(folder)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    number = os.open(path, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


def make_hidden_folder(folder: Path) -> Path:
    """Make the hidden folder of ``folder`` where there is none; git ignores it."""
    hidden = hidden_folder(folder)
    hidden.mkdir(parents=True, exist_ok=True)
    (hidden / ".gitignore").write_text("*\n")
    return hidden


def sweep(folder: Path) -> None:
    """Clear away what was drafted, and the hidden folder where nothing else is noted in it."""
    hidden = hidden_folder(folder)
    shutil.rmtree(hidden / "new", ignore_errors=True)
    if hidden.is_dir() and all(path.name.startswith(".") for path in hidden.iterdir()):
        shutil.rmtree(hidden)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock on changes of ``folder``; the system frees it with the process, however that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _opened(folder.parent) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is changing {folder}", "wait until it is done, then run again") from None
        yield


def _apply(folder: Path) -> None:
    """Do what the plan says and is not done yet; nothing without a plan."""
    if not interrupted(folder):
        return
    hidden = hidden_folder(folder)
    plan = json.loads((hidden / PLAN_FILE).read_text())
    draft = hidden / "new"
    files = [path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: (name == plan["last"], name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name, folder / name)
    for name in plan["remove"]:
        (folder / name).unlink(missing_ok=True)
        _prune(folder / name, folder)
    flush_file_system(hidden)
    (hidden / PLAN_FILE).unlink()
    flush(hidden)


def _prune(path: Path, top: Path) -> None:
    """Remove the folders above ``path`` that are empty now, below ``top``."""
    for parent in path.parents:
        if parent == top or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()
