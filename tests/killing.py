"""Replacing a file or folder in a process that is killed at every line of it. Light to import: it forks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from segmill import files
from segmill.files import replacing

Write = Callable[[Path], None]


def write_file(path: Path) -> None:
    path.write_text("new")


def write_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (path / name).write_text("new")


def content(path: Path) -> dict[str, str] | str | None:
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*") if file.is_file()}
    return path.read_text() if path.exists() else None


OLD_FILE, NEW_FILE = "old", "new"
OLD_FOLDER, NEW_FOLDER = {"a": "old", "c": "old"}, {"a": "new", "inner/b": "new"}


def prepare(path: Path, old: Any) -> None:
    if isinstance(old, dict):
        path.mkdir()
        for name, text in old.items():
            (path / name).write_text(text)
    elif old is not None:
        path.write_text(old)


def killed_at_line(number: int, path: Path, write: Write) -> bool:
    """Replace ``path`` in a child that is killed before it runs line ``number`` of files.py; True where it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        with replacing(path) as draft:
            write(draft)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_at_every_line(folder: Path, old: Any, write: Write, new: Any, *, exchange: bool) -> list[Any]:
    """Kill it at line after line until it comes to its end; return what was there after each kill.

    After each kill the old or the new content is there, and the next try leaves nothing else beside it.
    """
    os.fsync = lambda number: None  # what was written outlives a killed process without it
    really = files._exchange
    if not exchange:
        files._exchange = lambda one, other: False
    seen = []
    try:
        for number in range(1, 1000):
            place = folder / str(number)
            place.mkdir()
            path = place / "out"
            prepare(path, old)
            if not killed_at_line(number, path, write):
                assert content(path) == new
                break
            found = content(path)
            if exchange:
                assert found in (old, new), number
            else:  # two renames: the old one may be aside, and comes back with the next try
                assert found in (old, new) or (found is None and content(place / ".out.former") == old), number
            seen.append(found)
            try:
                with replacing(path) as draft:
                    assert not draft.exists()
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            assert content(path) in (old, new), number
            assert [entry.name for entry in place.iterdir()] in (["out"], []), number
    finally:
        files._exchange = really
    return seen
