"""Two models' counts as drawn from a population of skewed, correlated images, and the overlaps that they sum to."""

from __future__ import annotations

import numpy as np

from segmill.promotion.paired import PairedOverlaps


def drawn_counts(
    random: np.random.Generator, groups: list[str], *, classes: int = 4, gain: float = 0.0, spread: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Return challenger's and champion's tables, N x K x K, of images whose groups differ in size and difficulty.

    ``gain``: by which the challenger's share of wrong pixels is lower. ``spread``: by which models differ, by group.
    """
    names = sorted(set(groups))
    of_image = np.array([names.index(name) for name in groups])
    size = random.lognormal(7, 1, (len(names), classes))[of_image] * random.lognormal(0, 0.5, (len(groups), classes))
    difficulty = random.normal(-1.0, 0.5, (len(names), classes))
    tables = []
    for lower in (gain, 0.0):
        logit = (difficulty + random.normal(0, spread, difficulty.shape))[of_image]
        wrong = np.clip(1 / (1 + np.exp(-logit)) - lower, 0, 1)
        truth = size.round().astype(np.int64)
        errors = (truth * wrong).astype(np.int64)
        table = np.stack([np.diag(right) for right in truth - errors])
        for k in range(classes):
            table[:, k, (k + 1) % classes] += errors[:, k]
        tables.append(table)
    return tables[0], tables[1]


def drawn_pair(seed: int, groups: int, **kind: float) -> PairedOverlaps:
    names = [f"g{index}" for index in range(groups)]
    return PairedOverlaps.of(*drawn_counts(np.random.default_rng(seed), names, **kind), names)
