"""A pool of workers: each loads once, one that dies is replaced and its part comes back, errors come out."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from segmill.cluster.pool import each_part
from segmill.cluster.resources import Resources
from segmill.errors import InfrastructureError, InputError

HALF = Resources(0.5)


# What the workers run.
def multiply(factor: int) -> Callable[[int], tuple[int, int]]:
    loaded_by = os.getpid()
    return lambda number: (factor * number, loaded_by)


def dying(folder: Path) -> Callable[[int], int]:
    """Die of part 3 until a file says that it happened twice."""

    def do(number: int) -> int:
        deaths = folder / "deaths"
        if number == 3 and (count := len(deaths.read_text()) if deaths.exists() else 0) < 2:
            deaths.write_text("x" * (count + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return do


def refusing(kind: str) -> Callable[[int], int]:
    if kind == "at once":
        raise InputError("mend this")
    if kind == "dead":
        os.kill(os.getpid(), signal.SIGKILL)

    def do(number: int) -> int:
        raise InputError(f"mend {number}")

    return do


def test_each_worker_loads_once_and_every_part_is_done(joined: None) -> None:
    found = list(each_part(multiply, 3, deque(range(7)), HALF, 2))
    assert sorted(part for part, _ in found) == list(range(7))
    assert all(result and result[0] == 3 * part for part, result in found)
    assert 1 <= len({result[1] for _, result in found if result}) <= 2


def test_a_part_whose_worker_died_comes_back_and_may_be_given_again(joined: None, tmp_path: Path) -> None:
    parts, lost, done = deque(range(5)), 0, []
    for part, result in each_part(dying, tmp_path, parts, HALF, 1):
        if result is None:
            lost += 1
            parts.appendleft(part)
        else:
            done.append(result)
    assert (lost, sorted(done)) == (2, list(range(5)))


@pytest.mark.long
def test_what_goes_wrong_comes_out(joined: None) -> None:
    for kind, what in {"at once": "mend this", "later": "mend 7"}.items():
        with pytest.raises(InputError, match=what):
            list(each_part(refusing, kind, deque([7]), HALF, 1))
    with pytest.raises(InfrastructureError, match="die before they are ready"):
        list(each_part(refusing, "dead", deque([7]), HALF, 1))
    with pytest.raises(InfrastructureError, match="asks for"):
        list(each_part(multiply, 1, deque([7]), Resources(99), 1))
    assert list(each_part(multiply, 1, deque[int](), HALF, 2)) == []
