"""What loads has a low priority, and nothing of that stays."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from segmill.serving.priority import NICER, at_low_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is that of a process")


def priority() -> int:
    """Return that of the thread that asks: the larger, the later it gets a core."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def may_raise() -> bool:
    """Tell whether this process may give a thread its priority back."""

    def tried() -> bool:
        usual = priority()
        os.setpriority(os.PRIO_PROCESS, 0, usual + 1)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, usual)
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(1) as other:
        return other.submit(tried).result()


def test_loading_has_a_lower_priority_than_the_thread_that_waits_for_it() -> None:
    usual = priority()
    found = at_low_priority(lambda: (priority(), threading.get_ident()))
    assert found[0] == min(19, usual + NICER) and found[1] != threading.get_ident()
    assert priority() == usual


@pytest.mark.skipif(not may_raise(), reason="this user may not raise a priority")
def test_threads_that_loading_leaves_behind_have_the_usual_priority() -> None:
    with ThreadPoolExecutor(1) as stays:
        assert at_low_priority(lambda: stays.submit(priority).result()) > priority()
        assert stays.submit(priority).result() == priority()


def test_what_does_not_load_says_why_and_has_the_usual_priority_back() -> None:
    def load() -> None:
        raise RuntimeError("no such model")

    usual = priority()
    with pytest.raises(RuntimeError, match="no such model"):
        at_low_priority(load)
    assert priority() == usual
