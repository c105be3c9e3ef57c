"""One way to spread work over processes: results in order, a bounded number in flight."""

from __future__ import annotations

import itertools
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
BIG = 500  # below this many items starting processes costs more than it saves


def map_ordered(function: Callable[[Item], Result], items: Sequence[Item], *, jobs: int = 0) -> Iterator[Result]:
    """Yield ``function(item)`` in order of items. ``jobs``: processes; 0 takes all CPUs for more than BIG
    items, else 1.

    ``function`` and items must pickle. At most 4 x jobs results wait in memory, however slow the consumer is.
    InputError if a process dies, which is nearly always a lack of memory.
    """
    if jobs == 0:
        jobs = len(os.sched_getaffinity(0)) if len(items) > BIG else 1
    if jobs == 1:
        yield from map(function, items)
        return
    # Fresh processes: the caller may hold threads (Prefect, Ray, OpenCV) that a forked child would inherit
    # locked.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    waiting = iter(items)
    in_flight: deque[Future[Result]] = deque()
    try:
        for item in itertools.islice(waiting, 4 * jobs):
            in_flight.append(pool.submit(function, item))
        while in_flight:
            yield in_flight.popleft().result()
            for item in itertools.islice(waiting, 1):
                in_flight.append(pool.submit(function, item))
    except BrokenProcessPool as error:
        raise InputError(f"one of {jobs} processes died, likely out of memory; lower jobs (now {jobs})") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
