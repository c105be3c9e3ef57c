from __future__ import annotations

import os

import pytest

from segmill.data.parallel import map_ordered
from segmill.errors import InputError


def square(number: int) -> int:
    return number * number


def die(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def test_one_process_is_lazy_and_in_order() -> None:
    asked: list[int] = []

    def note(number: int) -> int:
        asked.append(number)
        return number

    results = map_ordered(note, range(100), jobs=1)
    assert [next(results), next(results)] == [0, 1]
    assert asked == [0, 1]


def test_several_processes_keep_the_order() -> None:
    assert list(map_ordered(square, range(20), jobs=2)) == [n * n for n in range(20)]


def test_a_dead_process_is_an_error_of_ours() -> None:
    with pytest.raises(InputError, match="one of 2 processes died"):
        list(map_ordered(die, range(8), jobs=2))
