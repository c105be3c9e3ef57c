from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from segmill.data.storage import journal
from segmill.errors import InputError


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "deep" / "old").write_text("old")
    return tmp_path / "set"


def test_a_change_is_put_in_place_and_leaves_nothing_beside(folder: Path) -> None:
    with journal.drafting(folder) as draft:
        (draft / "a").mkdir()
        (draft / "a" / "new").write_text("new")
        journal.commit(folder, remove=["deep/old", "was/never/there"], last="a/new")
    assert contents(folder) == {"a/new": "new"}
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    assert not (folder / "deep").exists()


def test_what_is_not_committed_never_happened(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), journal.drafting(folder) as draft:
        (draft / "new").write_text("new")
        raise ZeroDivisionError
    assert contents(folder) == {"deep/old": "old"}
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_git_passes_over_what_is_drafted(folder: Path) -> None:
    with journal.drafting(folder) as draft:
        assert (draft.parent / ".gitignore").read_text() == "*\n"


def test_only_one_process_changes_a_folder(folder: Path) -> None:
    lock = os.open(folder.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match="another process is changing"), journal.drafting(folder):
            pass
        journal.hidden_folder(folder).mkdir()
        with pytest.raises(InputError, match="another process is changing"):
            journal.finish(folder)
    finally:
        os.close(lock)
    journal.finish(folder)
    assert not journal.hidden_folder(folder).exists()
