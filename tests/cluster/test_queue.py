"""Turns on a cluster that is only a number of cores: who begins when, and that nobody waits for ever."""

from __future__ import annotations

import heapq
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from segmill.cluster import queue
from segmill.cluster.queue import Queue, planned
from segmill.cluster.resources import Resources
from segmill.cluster.waiting import allow_waiting, stop_waiting
from segmill.errors import Interrupted

ONE = Resources(1)


class Works:
    """Works in threads; each holds its turn until it is released."""

    def __init__(self, turns: Queue):
        self.turns = turns
        self.began: list[str] = []
        self._over: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, name: str, needs: Resources = ONE) -> None:
        self._over[name] = threading.Event()
        self._threads.append(threading.Thread(target=self._work, args=(name, needs), daemon=True))
        self._threads[-1].start()
        until(lambda: name in self.turns._waiting or name in self.began)

    def _work(self, name: str, needs: Resources) -> None:
        with self.turns.turn(name, needs):
            self.began.append(name)
            self._over[name].wait()

    def end(self, name: str) -> None:
        self._over[name].set()

    def end_all(self) -> None:
        for over in self._over.values():
            over.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def cluster(cpus: float, gpus: float = 0, costs: Mapping[str, float] | None = None) -> Works:
    turns = Queue(lambda: Resources(cpus, gpus))
    turns.expect(costs or {})
    return Works(turns)


def test_the_longest_begins_first_in_whatever_order_they_come() -> None:
    costs = {"short": 1.0, "middle": 5.0, "long": 9.0, "longest": 12.0}
    works = cluster(2, costs=costs)
    for name in costs:
        works.begin(name)
    until(lambda: len(works.began) == 2)
    assert set(works.began) == {"long", "longest"}
    works.end("long")
    until(lambda: len(works.began) == 3)
    assert works.began[2] == "middle"
    works.end_all()
    assert works.began[3] == "short"


def test_what_was_up_to_date_is_waited_for_no_longer() -> None:
    works = cluster(1, costs={"long": 9.0, "short": 1.0})
    works.begin("short")
    time.sleep(0.1)
    assert works.began == []
    works.turns.withdraw("long")
    until(lambda: works.began == ["short"])
    works.end_all()


def test_who_does_not_come_holds_up_the_others_for_some_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "PATIENCE_S", 0.2)
    monkeypatch.setattr(queue, "LOOK_EVERY_S", 0.02)
    works = cluster(1, costs={"long": 9.0, "short": 1.0})
    works.begin("short")
    until(lambda: works.began == ["short"])
    works.end_all()


def test_a_gang_begins_with_all_its_ranks_and_smaller_work_fills_what_is_free() -> None:
    works = cluster(4, costs={"a": 9.0, "gang": 8.0, "small": 1.0})
    works.begin("a", Resources(2))
    until(lambda: works.began == ["a"])
    works.begin("gang", Resources(1).times(3))
    works.begin("small", Resources(1))
    until(lambda: works.began == ["a", "small"])
    works.end("a")
    until(lambda: works.began == ["a", "small", "gang"])
    works.end_all()


def test_gpus_count_as_well_and_what_is_larger_than_the_cluster_is_left_to_ray() -> None:
    works = cluster(8, 1, costs={"a": 2.0, "b": 1.0})
    works.begin("a", Resources(1, 1))
    works.begin("b", Resources(1, 0.5))
    time.sleep(0.1)
    assert works.began == ["a"]
    works.end("a")
    until(lambda: works.began == ["a", "b"])
    works.begin("c", Resources(64))
    works.end("b")
    until(lambda: works.began == ["a", "b", "c"])
    works.end_all()


def test_an_error_gives_the_turn_back() -> None:
    turns = cluster(1).turns
    with pytest.raises(ZeroDivisionError), turns.turn("a", ONE):
        raise ZeroDivisionError
    with turns.turn("b", ONE):
        pass


def test_a_run_that_is_stopped_ends_whoever_waits() -> None:
    works = cluster(1)
    works.begin("a")
    until(lambda: works.began == ["a"])
    with ThreadPoolExecutor(1) as threads:

        def wait_for_turn() -> None:
            with works.turns.turn("b", ONE):
                raise AssertionError("it was not its turn")

        waiting = threads.submit(wait_for_turn)
        try:
            stop_waiting()
            with pytest.raises(Interrupted):
                waiting.result(timeout=10)
        finally:
            allow_waiting()
    works.end_all()


def makespan(order: list[str], costs: Mapping[str, float], slots: int) -> float:
    loads = [0.0] * slots
    for name in order:
        heapq.heapreplace(loads, loads[0] + costs[name])
    return max(loads)


def test_the_planned_order_is_never_worse_than_longest_first_and_often_better() -> None:
    """3, 3, 2, 2, 2 on two slots is the smallest set that longest first gets wrong: 7 instead of 6."""
    small = dict(zip("abcde", (3.0, 3.0, 2.0, 2.0, 2.0), strict=True))
    assert makespan(planned(small, 2), small, 2) == 6
    rng = random.Random(0)
    better = 0
    for _ in range(300):
        costs = {str(number): 1 + rng.lognormvariate(0.6, 0.8) for number in range(12)}
        slots = rng.choice([2, 4, 8])
        found = makespan(planned(costs, slots), costs, slots)
        first = makespan(sorted(costs, key=lambda name: costs[name], reverse=True), costs, slots)
        assert found <= first + 1e-9
        better += found < first - 1e-9
    assert better > 100
    assert planned({"a": 1.0, "b": math.inf, "c": 2.0}, 2) == ["b", "c", "a"]


def test_gangs_of_all_sizes_never_wait_for_one_another() -> None:
    """Eighty works of random size and cost, each twice in a row, on five cores."""
    rng = random.Random(0)
    turns = Queue(lambda: Resources(5))
    sizes = {f"work {number}": rng.randint(1, 5) for number in range(80)}
    turns.expect({name: rng.random() for name in sizes})
    lock, used, most = threading.Lock(), 0, 0

    def work_twice(name: str) -> None:
        nonlocal used, most
        for _ in range(2):
            with turns.turn(name, Resources(sizes[name])):
                with lock:
                    used += sizes[name]
                    most = max(most, used)
                time.sleep(0.0005)
                with lock:
                    used -= sizes[name]

    with ThreadPoolExecutor(80) as threads:
        for done in [threads.submit(work_twice, name) for name in sizes]:
            done.result(timeout=60)
    assert (used, most) == (0, 5)
