"""An answer from another process: it comes, a failure comes as if computed here, and nothing is left over."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from segmill import alongside as module
from segmill.alongside import alongside, answered_alongside
from segmill.errors import InputError


def refuse() -> None:
    raise InputError("mend this")


def die_unless(here: int) -> int:
    if os.getpid() != here:
        os.kill(os.getpid(), signal.SIGKILL)
    return here


def sleep(note: Path) -> None:
    note.touch()
    time.sleep(60)


def test_a_thread_that_never_ends_does_not_hold_up_what_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), alongside(lambda over: never.wait() and None):
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10
    never.set()


def test_the_answer_comes_from_another_process() -> None:
    with answered_alongside(os.getpid) as answer:
        assert answer() != os.getpid()


def test_what_fails_there_is_raised_here() -> None:
    with answered_alongside(refuse) as answer, pytest.raises(InputError, match=r"^mend this$"):
        answer()


def test_a_process_that_dies_is_no_harm() -> None:
    with answered_alongside(die_unless, os.getpid()) as answer:
        assert answer() == os.getpid()


def test_nothing_runs_on_after_a_block_that_did_not_ask(tmp_path: Path) -> None:
    began = time.monotonic()
    with answered_alongside(sleep, tmp_path / "began"):
        while not (tmp_path / "began").exists():
            assert time.monotonic() - began < 60
            time.sleep(0.05)
    assert multiprocessing.active_children() == []
