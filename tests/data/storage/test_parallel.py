from __future__ import annotations

import os
import signal

import pytest

from segmill.data.storage.parallel import map_ordered
from segmill.errors import InputError


def square(number: int) -> int:
    return number * number


def die(number: int) -> int:
    if number == 3:
        os._exit(1)
    return number


def crash_often(number: int) -> int:
    if number in (2, 9):
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def test_one_process_is_lazy_and_in_order() -> None:
    asked: list[int] = []

    def note(number: int) -> int:
        asked.append(number)
        return number

    results = map_ordered(note, range(100), jobs=1)
    assert [next(results), next(results)] == [0, 1]
    assert asked == [0, 1]


@pytest.mark.parametrize("chunk", [1, 7])
def test_several_processes_keep_the_order(chunk: int) -> None:
    assert list(map_ordered(square, range(20), jobs=2, chunk=chunk)) == [n * n for n in range(20)]


def test_a_dead_process_is_an_error_of_ours() -> None:
    with pytest.raises(InputError, match="one of 2 processes died"):
        list(map_ordered(die, range(8), jobs=2))


def test_a_crash_is_blamed_on_its_item_and_on_no_other() -> None:
    results = list(map_ordered(crash_often, range(12), jobs=2, chunk=4, died=lambda number: -number))
    assert results == [-n if n in (2, 9) else n for n in range(12)]


def test_one_job_survives_a_crash_too() -> None:
    assert list(map_ordered(crash_often, range(4), jobs=1, chunk=8, died=lambda number: -number)) == [0, 1, -2, 3]


class Unloadable:
    """Ends the process that unpickles it."""

    def __call__(self, number: int) -> int:
        return number

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_processes_that_die_anyway_blame_no_item() -> None:
    with pytest.raises(InputError, match="die before they have done anything"):
        list(map_ordered(Unloadable(), range(100), jobs=2, died=lambda _: 0))


def test_an_error_of_the_function_comes_through() -> None:
    with pytest.raises(TypeError):
        list(map_ordered(square, ["no number"], jobs=1, died=lambda _: 0))
