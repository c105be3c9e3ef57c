"""How long the gate takes and how much memory, with 10 conditions: prints seconds and MiB for each kind of verdict."""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from segmill.promotion.budget import GateBudget, Judgement, budget, group_id
from segmill.promotion.gate import GateEvidence, GatePolicy, decide

SLICES = {"weather": 4, "light": 3}  # values of each column
CLASSES_GUARDED = 19


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--classes", type=int, default=CLASSES_GUARDED)
    parser.add_argument("--promotions", type=int, default=3, help="on one test set, each with a smaller level")
    options = parser.parse_args()
    policy = GatePolicy(
        floor_miou=0.3,
        class_loss=0.05,
        slices=dict.fromkeys(SLICES, 0.05),
        latency_ratio=1.2,
        size_ratio=1.2,
    )
    decide(_evidence(100, 20, 3, 0.1), policy, _budget(20, 0), seed=0)  # scipy is imported
    before = _peak_mib()
    for passes in range(options.promotions):
        for better in (0.0, 0.1):
            evidence = _evidence(options.images, options.groups, options.classes, better)
            began, busy = time.perf_counter(), time.process_time()
            verdict = decide(evidence, policy, _budget(options.groups, passes), seed=0)
            seconds, of_cpu = time.perf_counter() - began, time.process_time() - busy
            print(
                f"promotion {passes + 1}, challenger {'better' if better else 'equal'}: {verdict.decision}, "
                f"{len(verdict.facts['conditions'])} conditions, level {verdict.facts['level']:.1e}, {seconds:.2f} s "
                f"({of_cpu:.2f} s of CPU)"
            )
    counts_mib = 2 * options.images * options.classes**2 * 8 / 2**20
    peak = _peak_mib()
    print(f"peak memory {peak:.0f} MiB, {peak - before:.0f} of it since the imports; the counts are {counts_mib:.0f}")


def _evidence(images: int, groups: int, classes: int, better: float) -> GateEvidence:
    """Draw two models' counts: every class in every image, wrong pixels spread evenly."""
    random = np.random.default_rng(0)
    of_image = np.arange(images) % groups
    hard = random.normal(0, 0.3, (groups, classes))[of_image]
    truth = random.lognormal(6, 1, (images, classes)).astype(int) + 1
    tables = []
    for lower in (better, 0.0):
        wrong = 1 / (1 + np.exp(1.5 + hard + lower + random.normal(0, 0.3, (images, classes))))
        errors = (truth * wrong).astype(int)
        counts = np.zeros((images, classes, classes), np.int64)
        for k in range(classes):
            counts[:, k, k] = truth[:, k] - errors[:, k]
            counts[:, k, (k + 1) % classes] += errors[:, k]
        tables.append(counts)
    times = random.lognormal(4, 0.05, (2, 30))
    return GateEvidence(
        challenger_counts_NKK=tables[0],
        champion_counts_NKK=tables[1],
        groups=[f"g{group}" for group in of_image],
        class_names=[f"class {k}" for k in range(classes)],
        slices={column: [f"value {group % count}" for group in of_image] for column, count in SLICES.items()},
        latency_ms=(times[0].tolist(), times[1].tolist()),
        bytes=(100, 100),
    )


def _budget(groups: int, passes: int) -> GateBudget:
    names = [f"g{group}" for group in range(groups)]
    history = [Judgement(frozenset(map(group_id, names)), True, False, "", False)] * passes
    return budget(history, names, alpha=0.05, judgements=20, recipe="")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
