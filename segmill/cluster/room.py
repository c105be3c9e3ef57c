"""How many workers that need no other the cluster has room for. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segmill.cluster.resources import Resources, each_node


@dataclass(frozen=True)
class Room:
    """``workers`` can run at the same time where nothing else does; each takes ``each``."""

    each: Resources
    workers: int


def room(memory_bytes: int) -> Room:
    """Return how many workers of ``memory_bytes`` the cluster holds: one per GPU where there are any, else per CPU.

    A worker takes one CPU, so that it computes with one thread: how many threads share a network's work can change the
    last bit of what it predicts, and no result may depend on the machine. The memory of the host limits how many; where
    no node has as much, there is one worker, which asks for none.
    """
    nodes = each_node()
    each = Resources(1, int(any(has.get("GPU", 0) >= 1 for has in nodes)), memory_bytes)
    workers = sum(_held(has, each) for has in nodes)
    return Room(each, workers) if workers else Room(Resources(1, each.num_gpus), 1)


def _held(has: Mapping[str, float], each: Resources) -> int:
    """Return how many times a node's resources hold ``each``."""
    asked = {"CPU": each.num_cpus, "GPU": each.num_gpus, "memory": each.memory_bytes}
    return min(int(has.get(kind, 0) / amount) for kind, amount in asked.items() if amount)
