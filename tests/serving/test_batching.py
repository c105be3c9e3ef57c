"""Requests are computed together as they come: what waits when the computing thread is free, in that thread alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from segmill.serving.batching import Batcher


@dataclass
class Doubling:
    """Returns twice each number, when ``go`` is set; records the batches and the threads."""

    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def load(self) -> Callable[[Sequence[int]], list[int]]:
        return self._double

    def _double(self, asked: Sequence[int]) -> list[int]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(asked))
        self.began.set()
        assert self.go.wait(20)
        if 13 in asked:
            raise ValueError("13 is not doubled")
        return [2 * one for one in asked]


async def ask(batcher: Batcher[int, int], doubling: Doubling, numbers: Sequence[int]) -> list[int | BaseException]:
    """Ask for 0, and while that is computed for the numbers; return their answers."""
    first = asyncio.create_task(batcher.ask(0))
    await asyncio.to_thread(doubling.began.wait, 20)
    tasks = [asyncio.create_task(batcher.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    doubling.go.set()
    assert await first == 0
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_what_waits_is_computed_together_in_one_thread() -> None:
    doubling = Doubling()
    found = asyncio.run(ask(Batcher(doubling.load, 4), doubling, range(1, 7)))
    assert found == [2, 4, 6, 8, 10, 12]
    assert doubling.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert len(doubling.threads) == 1 and threading.get_ident() not in doubling.threads


def test_a_request_that_fails_is_computed_alone_and_costs_others_nothing() -> None:
    doubling = Doubling()
    found = asyncio.run(ask(Batcher(doubling.load, 8), doubling, [12, 13, 14]))
    assert found[0] == 24 and found[2] == 28
    assert isinstance(found[1], ValueError) and str(found[1]) == "13 is not doubled"
    assert doubling.batches == [[0], [12, 13, 14], [12], [13], [14]]


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    doubling = Doubling()
    batcher = Batcher(doubling.load, 8)

    async def asked() -> int:
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.to_thread(doubling.began.wait, 20)
        gone, kept = asyncio.create_task(batcher.ask(1)), asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        doubling.go.set()
        await first
        return await kept

    assert asyncio.run(asked()) == 4
    assert doubling.batches == [[0], [2]]


def test_what_does_not_load_says_why() -> None:
    def load() -> Callable[[Sequence[int]], list[int]]:
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        Batcher(load, 8)
