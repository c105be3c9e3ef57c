"""Replacing files and folders: old or new, whatever happens in between, SIGKILL at every line included."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from killing import (
    NEW_FILE,
    NEW_FOLDER,
    OLD_FILE,
    OLD_FOLDER,
    Write,
    content,
    kill_at_every_line,
    prepare,
    write_file,
    write_folder,
)

from segmill import files
from segmill.files import replacing, write_atomically


@pytest.fixture(scope="module")
def light_process() -> Iterator[Executor]:
    """A process without the libraries that tests before have loaded: they make each fork of it slow."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


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
    light_process: Executor, tmp_path: Path, old: Any, write: Write, new: Any, exchange: bool
) -> None:
    seen = light_process.submit(kill_at_every_line, tmp_path, old, write, new, exchange=exchange).result()
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
