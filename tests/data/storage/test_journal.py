from __future__ import annotations

import fcntl
import itertools
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmill import files
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


NAMES = st.sampled_from(["a", "b", "deep/a", "deep/b", "deep/deeper/c", "other/d"])
STEPS = ("os.", "open", "shutil.")  # audit events of what touches the disk


def kill_at_step(step: int) -> None:
    """Kill this process before its ``step``-th touch of the disk from now on."""
    count = itertools.count(1)

    def hook(event: str, _: object) -> None:
        if event.startswith(STEPS) and next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def change_and_die(folder: Path, draft: dict[str, str], remove: list[str], last: str, step: int) -> bool:
    """Carry out a change in a child that is killed before its ``step``-th touch of the disk; True where it was."""
    child = os.fork()
    if child == 0:
        kill_at_step(step)
        with journal.drafting(folder) as new:
            for name, text in draft.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_text(text)
            journal.commit(folder, remove=remove, last=last)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    before=st.dictionaries(NAMES, st.just("old"), min_size=1),
    draft=st.dictionaries(NAMES, st.just("new")),
    remove=st.lists(NAMES, unique=True),
    step=st.integers(1, 60),
    again=st.integers(1, 40),
)
def test_a_plan_killed_anywhere_ends_wholly_old_or_wholly_new(
    before: dict[str, str], draft: dict[str, str], remove: list[str], step: int, again: int
) -> None:
    remove = [name for name in remove if name not in draft]
    after = {name: text for name, text in {**before, **draft}.items() if name not in remove}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "flush_file_system", lambda folder: None)  # what was written outlives a killed process
        patch.setattr(journal, "flush_file_system", lambda folder: None)
        folder = Path(place) / "set"
        for name, text in before.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

        killed = change_and_die(folder, draft, remove, next(iter(draft), ""), step)
        planned = journal.interrupted(folder)
        if planned:
            finish_and_die(folder, again)
        journal.finish(folder)

        assert contents(folder) in ([after] if planned or not killed else [before, after])
        assert [path.name for path in Path(place).iterdir()] == ["set"]


def finish_and_die(folder: Path, step: int) -> None:
    """Carry an interrupted change on in a child that is killed, too, before its ``step``-th touch of the disk."""
    child = os.fork()
    if child == 0:
        kill_at_step(step)
        journal.finish(folder)
        os._exit(0)
    os.waitpid(child, 0)
