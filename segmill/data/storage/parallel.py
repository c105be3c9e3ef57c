"""One way to spread work over processes: results in order, a bounded number in flight, a crash blamed on its item."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from segmill.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
IMPORTED_ONCE = ["__main__", "numpy", "cv2", "PIL.Image"]  # by the process from which all others are forked
BIG = 500  # below this many items starting processes costs more than it saves


def map_ordered(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int = 0,
    chunk: int = 1,
    died: Callable[[Item], Result] | None = None,
) -> Iterator[Result]:
    """Yield ``function(item)`` in order of items.

    ``function``, items and results must pickle. At most 4 x jobs chunks wait in memory, however slow the consumer is.

    Args:
        function: what to do with each item.
        items: as many as you like.
        jobs: processes; 0 takes all CPUs for more than BIG items, else 1.
        chunk: how many items go to a process at once; more where an item takes less than some milliseconds.
        died: the result for an item whose process did not survive it (a crash in C, or killed for its memory). With
            it the work is done in other processes even where ``jobs`` is 1; without it one job is done right here.

    Raises:
        InputError: a process died and no ``died`` was given, or processes die before they have an item.
    """
    if jobs == 0:
        jobs = len(os.sched_getaffinity(0)) if len(items) > BIG else 1
    if jobs == 1 and died is None:
        yield from map(function, items)
        return
    chunks = (items[start : start + chunk] for start in range(0, len(items), chunk))
    in_flight: deque[tuple[Sequence[Item], Future[list[Result]]]] = deque()
    pool = _processes(jobs)
    try:
        while True:
            try:
                while len(in_flight) < 4 * jobs and (work := next(chunks, None)) is not None:
                    in_flight.append((work, Future()))
                    in_flight[-1] = work, pool.submit(_each, function, work)
                if not in_flight:
                    return
                results = in_flight[0][1].result()
            except BrokenProcessPool as error:
                if died is None:
                    what = f"one of {jobs} processes died, likely out of memory"
                    raise InputError(what, f"lower jobs (now {jobs})") from error
                pool.shutdown(wait=True)
                for work, future in in_flight:
                    yield from future.result() if _finished(future) else _one_by_one(function, work, died)
                in_flight.clear()
                pool = _processes(jobs)
            else:
                in_flight.popleft()
                yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processes(jobs: int) -> ProcessPoolExecutor:
    # The caller may hold threads (Prefect, Ray, OpenCV) that a child forked from it would inherit locked: processes are
    # forked from one that holds none. A fresh process for each would import the same libraries again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)
    return ProcessPoolExecutor(jobs, mp_context=context)


def _each(function: Callable[[Item], Result], work: Sequence[Item]) -> list[Result]:
    return [function(item) for item in work]


def _finished(future: Future[list[Result]]) -> bool:
    return future.done() and future.exception() is None


def _one_by_one(
    function: Callable[[Item], Result], work: Sequence[Item], died: Callable[[Item], Result]
) -> Iterator[Result]:
    pool = _processes(1)
    try:
        _refuse_if_idle_kills(pool, function)
        for item in work:
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool:
                pool.shutdown(wait=True)
                pool = _processes(1)
                yield died(item)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _refuse_if_idle_kills(pool: ProcessPoolExecutor, function: Callable[[Item], Result]) -> None:
    """Blame no item for what happens without any: a process that can't even load ``function``."""
    try:
        pool.submit(_each, function, ()).result()
    except BrokenProcessPool as error:
        raise InputError(
            "processes die before they have done anything; free some memory, or reinstall segmill"
        ) from error
