"""Whose turn it is to take cores: the longest work first, each with all that it needs at once. Light to import."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from segmill.cluster.resources import Resources, total_resources
from segmill.cluster.waiting import LOOK_EVERY_S, raise_if_stopped

# Expected work that is not there yet (its inputs are still compared) holds up shorter work for this long at most.
PATIENCE_S = 30.0
# A cluster may grow. Seldom, for a question to one whose head has just died is answered after a minute.
REFRESH_S = 30.0


@dataclass
class Queue:
    """Which work runs, waits or is expected.

    All that a piece of work needs is given at once, so that none waits for another that waits for it. Whatever fits
    begins; of several the one of the greatest cost. Others who use the same cluster are not known here:
    what they hold is waited for by Ray.

    ``total``: what the cluster has, asked for every REFRESH_S.
    """

    total: Callable[[], Resources] = total_resources
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _costs: dict[str, float] = field(default_factory=dict)
    _expected: set[str] = field(default_factory=set)
    _expected_since: float = -math.inf
    _waiting: dict[str, Resources] = field(default_factory=dict)
    _held: dict[str, Resources] = field(default_factory=dict)
    _has: Resources = field(default_factory=Resources)
    _asked_at: float = -math.inf

    def expect(self, costs: Mapping[str, float]) -> None:
        """Say which work will come, and what each costs: what costs more begins earlier, such as by ``planned``."""
        with self._changed:
            self._costs, self._expected, self._expected_since = dict(costs), set(costs), time.monotonic()
            self._asked_at = -math.inf

    def withdraw(self, name: str) -> None:
        """Say that the work ``name`` does not come: nothing is to be done, or it went wrong before."""
        with self._changed:
            self._expected.discard(name)
            self._changed.notify_all()

    @contextmanager
    def turn(self, name: str, needs: Resources) -> Iterator[None]:
        """Wait for the turn of the work ``name`` and let it hold ``needs``, of all its processes, during the block.

        Raises Interrupted where the run is stopped meanwhile.
        """
        with self._changed:
            self._expected.discard(name)
            self._waiting[name] = needs
            self._changed.notify_all()
            try:
                while self._next() != name:
                    self._changed.wait(LOOK_EVERY_S)
                    raise_if_stopped()
                self._held[name] = needs
            finally:
                del self._waiting[name]
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                del self._held[name]
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Return the costliest of those that fit; None where there is none, or one that costs more is about to come."""
        if time.monotonic() - self._asked_at > REFRESH_S:
            self._has, self._asked_at = self.total(), time.monotonic()
        total, held = self._has, list(self._held.values())
        free = Resources(
            total.num_cpus - sum(one.num_cpus for one in held), total.num_gpus - sum(one.num_gpus for one in held)
        )
        fitting = [name for name, needs in self._waiting.items() if _fits(needs, free) or not held]
        if not fitting:
            return None
        first = max(fitting, key=self._cost)
        costlier = any(self._cost(name) > self._cost(first) for name in self._expected)
        return None if costlier and time.monotonic() - self._expected_since < PATIENCE_S else first

    def _cost(self, name: str) -> float:
        return self._costs.get(name, math.inf)


def planned(costs: Mapping[str, float], slots: int) -> list[str]:
    """Return the order in which work that takes a slot each is done soonest: longest first, then improved by search.

    A piece of the last slot that ends is moved to another slot, or changes places with one there, as long as that
    helps (Graham 1969 for the first part; pairwise interchange). Costs that nobody knows come first, in their order.
    """
    falling = sorted(costs, key=lambda name: costs[name], reverse=True)
    if slots < 2 or math.inf in costs.values():
        return falling
    loads: list[list[str]] = [[] for _ in range(slots)]

    def load(names: list[str]) -> float:
        return sum(costs[name] for name in names)

    for name in falling:
        min(loads, key=load).append(name)
    while _improve(loads, load):
        pass
    begins = {
        name: load(names[:number])
        for names in (sorted(names, key=falling.index) for names in loads)
        for number, name in enumerate(names)
    }
    return sorted(falling, key=lambda name: begins[name])


def _improve(loads: list[list[str]], load: Callable[[list[str]], float]) -> bool:
    """Make the longest of two slots shorter by a move or an exchange; False where none does."""
    longest = max(loads, key=load)
    for other in loads:
        if other is longest:
            continue
        for mine in longest:
            for theirs in ([], *([name] for name in other)):
                one = [name for name in longest if name != mine] + theirs
                two = [name for name in other if name not in theirs] + [mine]
                if max(load(one), load(two)) < load(longest) - 1e-9:
                    longest[:], other[:] = one, two
                    return True
    return False


def _fits(needs: Resources, free: Resources) -> bool:
    slack = 1e-6  # shares are fractions
    return needs.num_cpus <= free.num_cpus + slack and needs.num_gpus <= free.num_gpus + slack


TRAININGS = Queue()  # of this process
