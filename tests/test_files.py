"""Replacing files and folders: old or new, whatever happens in between, SIGKILL at every line included."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from segmill import files
from segmill.files import replacing, write_atomically

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


@pytest.mark.parametrize(
    ("old", "write", "new", "exchange"),
    [
        (None, write_file, NEW_FILE, True),
        (OLD_FILE, write_file, NEW_FILE, True),
        (None, write_folder, NEW_FOLDER, True),
        (OLD_FOLDER, write_folder, NEW_FOLDER, True),
        (OLD_FOLDER, write_folder, NEW_FOLDER, False),
        (OLD_FOLDER, write_file, NEW_FILE, True),
        (OLD_FILE, write_folder, NEW_FOLDER, False),
    ],
)
def test_killed_at_any_line_old_or_new_is_there_and_the_next_try_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: Any, write: Write, new: Any, exchange: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)  # what was written outlives a killed process without it
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    seen = []
    for number in range(1, 1000):
        place = tmp_path / str(number)
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
        with pytest.raises(ZeroDivisionError), replacing(path) as draft:
            assert not draft.exists()
            1 / 0  # noqa: B018
        assert content(path) in (old, new), number
        assert [entry.name for entry in place.iterdir()] in (["out"], []), number
    assert len(seen) > 20, "it was killed at many lines"
    assert old in seen
    assert new in seen


def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_text("half")
        1 / 0  # noqa: B018

    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("old", [OLD_FILE, OLD_FOLDER])
def test_a_block_that_writes_nothing_loses_nothing(tmp_path: Path, old: Any) -> None:
    prepare(tmp_path / "out", old)

    with pytest.raises(FileNotFoundError), replacing(tmp_path / "out"):
        pass

    assert content(tmp_path / "out") == old


def test_writes_at_the_same_time_do_not_disturb_one_another(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    texts = [str(number) * 50_000 for number in range(4)]
    errors = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_atomically(path, text, durable=False)
                assert path.read_text() in texts
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    assert [entry.name for entry in path.parent.iterdir()] == ["out"]


def test_the_draft_of_a_process_that_runs_is_left_alone_and_those_of_the_dead_go(tmp_path: Path) -> None:
    path = tmp_path / "out"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    machine = files._machine()
    alive = tmp_path / f".out.{machine}-{os.getppid()}-0.draft"
    elsewhere, long_ago = tmp_path / f".out.elsewhere-{child}-0.draft", tmp_path / f".out.long-ago-{child}-0.draft"
    for draft in (alive, elsewhere, long_ago, tmp_path / f".out.{machine}-{child}-0.draft"):
        draft.touch()
    os.utime(long_ago, (0, 0))

    write_atomically(path, "new")

    assert {entry.name for entry in tmp_path.iterdir()} == {"out", alive.name, elsewhere.name}


def test_bytes_and_text_as_utf_8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "text", "Ä\n")
    write_atomically(tmp_path / "bytes", b"\xc3\x84\n")

    assert (tmp_path / "text").read_bytes() == (tmp_path / "bytes").read_bytes() == b"\xc3\x84\n"


def test_a_link_is_replaced_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "out").symlink_to("target")

    with replacing(tmp_path / "out") as draft:
        write_folder(draft)

    assert not (tmp_path / "out").is_symlink()
    assert content(tmp_path / "out") == NEW_FOLDER
    assert (tmp_path / "target").is_dir()
