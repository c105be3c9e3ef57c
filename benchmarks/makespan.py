"""How long 12 members of mixed cost take on 2, 4 and 8 slots of Ray, against the best order that a search finds.

    python benchmarks/makespan.py [--mixes 2] [--simulated 200] [--threads]

A member sleeps, so that slots may be more than cores: what is measured is whose turn it is, and Ray's own time between
two members. It waits for its turn as a training does (segmill.cluster.queue) and then runs on Ray (cluster.work.on_ray)
in a process that is there already; with --threads it sleeps in its thread, without Ray. The optimum is exact: branch
and bound over all assignments. Printed beside it: the same members in the order of params.yaml, and over many simulated
mixes how far the planned order is from the optimum at worst.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from segmill.cluster.connection import connect
from segmill.cluster.queue import Queue, planned
from segmill.cluster.resources import Resources
from segmill.cluster.work import on_ray, wait

MEMBERS = 12
SLOTS = (2, 4, 8)


def nap(seconds: float) -> None:
    time.sleep(seconds)


def mix(seed: int) -> list[float]:
    """Return seconds of members: most are short, few are long (log-normal), at least one second."""
    rng = random.Random(seed)
    return [1 + rng.lognormvariate(0.6, 0.8) for _ in range(MEMBERS)]


def in_order(costs: Sequence[float], slots: int) -> float:
    """Return the makespan where each begins, in this order, as soon as a slot is free."""
    loads = [0.0] * slots
    for cost in costs:
        heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def optimum(costs: Sequence[float], slots: int) -> float:
    """Return the least makespan of all assignments: branch and bound, the longest first."""
    falling = sorted(costs, reverse=True)
    best, bound = in_order(falling, slots), max(falling[0], sum(falling) / slots)
    loads = [0.0] * slots

    def assign(number: int) -> None:
        nonlocal best
        if best <= bound * (1 + 1e-9):
            return
        if number == len(falling):
            best = max(loads)
            return
        tried = set()
        for slot in range(slots):
            if loads[slot] in tried or loads[slot] + falling[number] >= best - 1e-9:
                continue
            tried.add(loads[slot])
            loads[slot] += falling[number]
            assign(number + 1)
            loads[slot] -= falling[number]

    assign(0)
    return best


def on_the_cluster(seconds: float) -> None:
    wait(on_ray(nap, seconds))


def measured(costs: Sequence[float], slots: int, sleep: Callable[[float], None], *, known: bool) -> float:
    """Return the seconds in which the members ``sleep``; ``known``: their costs are."""
    turns = Queue(lambda: Resources(slots))
    names = [f"member {number}" for number in range(len(costs))]
    if known:
        order = planned(dict(zip(names, costs, strict=True)), slots)
        turns.expect({name: float(len(order) - number) for number, name in enumerate(order)})

    def member(name: str, seconds: float) -> None:
        with turns.turn(name, Resources(1)):
            sleep(seconds)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(costs)) as threads:
        for done in [threads.submit(member, *one) for one in zip(names, costs, strict=True)]:
            done.result()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=2)
    parser.add_argument("--simulated", type=int, default=200)
    parser.add_argument("--threads", action="store_true")
    args = parser.parse_args()
    print("slots  mix  optimum        planned  ratio  order of params.yaml  ratio")
    for slots in SLOTS:
        with nullcontext() if args.threads else connect("local", slots):
            if not args.threads:
                for begun in [on_ray(nap, 1.0) for _ in range(slots)]:
                    wait(begun)
            for seed in range(args.mixes):
                costs = mix(seed)
                best = optimum(costs, slots)
                sleep = nap if args.threads else on_the_cluster
                ours, plain = (measured(costs, slots, sleep, known=known) for known in (True, False))
                print(
                    f"{slots:5d}  {seed:3d}  {best:6.2f}s  {ours:12.2f}s  {ours / best:5.3f}  {plain:19.2f}s  "
                    f"{plain / best:5.3f}",
                    flush=True,
                )
    for slots in SLOTS:
        ratios = []
        for costs in map(mix, range(1000, 1000 + args.simulated)):
            named = {str(number): cost for number, cost in enumerate(costs)}
            order = [named[name] for name in planned(named, slots)]
            ratios.append(in_order(order, slots) / optimum(costs, slots))
        print(f"simulated, {slots} slots, {len(ratios)} mixes: planned is at most {max(ratios):.3f} x the optimum")


if __name__ == "__main__":
    main()
