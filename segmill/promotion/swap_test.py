"""The p-value of a gain in mIoU: how often swapping the two models in some of the groups would show as large a gain.

If challenger and champion are equally good, then which of the two made a group's counts is a coin toss, however skewed
the groups are and however alike their images. So every pattern of swaps is as likely as the one that was seen, and the
share of patterns with as large a statistic is a p-value that holds for any number of groups. The statistic is the gain
in mIoU of the summed counts divided by its standard error, both of each pattern anew: studentised, the test also holds
nearly for models that are equally good on average and differ in how much they vary.

Source: Fisher, "The Design of Experiments", 1935, section 21; Janssen, "Studentized permutation tests for non-i.i.d.
hypotheses", Statistics & Probability Letters 1997; Phipson & Smyth, "Permutation p-values should never be zero", 2010.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from segmill.metrics.intervals import FloatArray
from segmill.promotion.paired import PairedOverlaps

EXACT_GROUPS = 20  # 2^19 patterns and their mirrored ones: about a second for 19 classes
LEAST_DRAWS = 10_000
USUAL_DRAWS = 2**20
MOST_DRAWS = 2**26  # they show p-values down to 1 / (2 (MOST_DRAWS + 1)), which is below the budget's LEAST_LEVEL
# Multiplications in a matrix product that OpenBLAS does in one thread (its interface/gemm.c). Threads for products as
# small as these cost more than they bring: 15 times the CPU time on a machine that others use too.
PRODUCT_OF_ONE_THREAD = 2**18


@dataclass(frozen=True)
class SwapTest:
    """A one-sided p-value of "the challenger's mIoU is higher".

    ``exact``: all patterns of swaps were to be counted, else ``patterns`` drawn ones. ``at_least``: the count ended as
    soon as the p-value was sure to be above the level; it is at least ``p_value``.
    """

    p_value: float
    patterns: int
    exact: bool
    at_least: bool

    def describe(self) -> str:
        return "all swaps of the groups" if self.exact else f"{self.patterns:,} random swaps of the groups"


def swap_test(pair: PairedOverlaps, *, level: float, seed: int) -> SwapTest:
    """Test one-sided whether the gain in mIoU is above zero.

    A pattern and its mirrored one have opposite statistics, so one of the two is computed. Up to EXACT_GROUPS groups
    all 2^(G-1) are; above, R = ``draws(level)`` random ones with p = (1 + e) / (2 (R + 1)), where e of them have a
    statistic as large as the one that was seen, in absolute value. That is valid: given the R + 1 pairs, the pair that
    was seen is any of them, and on either side with probability 1/2.

    Args:
        pair: of the G groups; at least one class has truth.
        level: counting ends early where p is sure to be above it; p itself does not depend on it otherwise.
        seed: decides the random patterns.
    """
    swaps = _Swaps(pair)
    groups = len(pair.truth)
    exact = groups <= EXACT_GROUPS
    planned = 2 ** (groups - 1) if exact else draws(level)
    # In pairs of patterns, the one that was seen among them; it is the first of the exact ones.
    pairs, extreme = (planned, 0) if exact else (planned + 1, 1)
    if not swaps.gain > 0:
        return SwapTest(0.5, planned, exact, at_least=True)
    for signs_RG in _patterns(groups, planned, exact, seed, chunk=swaps.patterns_at_a_time):
        extreme += swaps.as_extreme(signs_RG)
        if extreme > level * 2 * pairs:
            return SwapTest(extreme / (2 * pairs), planned, exact, at_least=True)
    return SwapTest(extreme / (2 * pairs), planned, exact, at_least=False)


def draws(level: float) -> int:
    """Return how many random patterns a test at ``level`` draws.

    10 / level, but at least LEAST_DRAWS and at most USUAL_DRAWS, so that chance in the drawing hardly matters; for
    levels that these can't show 2 / level, and never more than MOST_DRAWS.
    """
    wanted = min(max(math.ceil(10 / level), LEAST_DRAWS), USUAL_DRAWS)
    return min(max(wanted, math.ceil(2 / level)), MOST_DRAWS)


def _patterns(groups: int, count: int, exact: bool, seed: int, *, chunk: int) -> Iterator[FloatArray]:
    """Yield ``chunk`` x G arrays of 1 (as seen) and -1 (swapped); exact patterns never swap the first group."""
    random = np.random.default_rng(seed)
    for start in range(0, count, chunk):
        rows = min(chunk, count - start)
        if exact:
            swapped_RG = (np.arange(start, start + rows)[:, None] >> np.arange(groups)[::-1]) & 1 == 1
        else:
            bits = np.frombuffer(random.bytes(rows * -(-groups // 8)), np.uint8).reshape(rows, -1)
            swapped_RG = np.unpackbits(bits, axis=1, count=groups) == 1
        yield np.where(swapped_RG, -1.0, 1.0)


class _Swaps:
    """The statistic under any pattern of swaps, as matrix products.

    With m the mean and d half the difference of the two models' counts, pattern s gives the challenger the sums of
    m + s d and the champion those of m - s d. A group's influence on the gain (delta method) is then
    (v_new - v_old) m + s (v_new + v_old) d with v = (1, -I / U) / (K U) for intersections and unions.
    """

    def __init__(self, pair: PairedOverlaps) -> None:
        present_K = pair.truth.sum(axis=0) > 0
        new = np.hstack([pair.new_both[:, present_K], pair.new_either[:, present_K]])
        old = np.hstack([pair.old_both[:, present_K], pair.old_either[:, present_K]])
        self._classes = int(present_K.sum())
        self.patterns_at_a_time = max(PRODUCT_OF_ONE_THREAD // new.size, 1)
        self._half_G2K = (new - old) / 2
        self._mean_2K = (new + old).sum(axis=0) / 2
        # The union's part of v is negative.
        factor_2K = np.repeat([1.0, -1.0], self._classes) / self._classes
        self._mean_2KG, self._half_2KG = ((part * factor_2K).T.copy() for part in ((new + old) / 2, (new - old) / 2))
        (self.gain,), (self._error,), (size,) = self._statistic(np.ones((1, len(new))))
        self._rounding = 1e-9 * self.gain * size

    def as_extreme(self, signs_RG: FloatArray) -> int:
        """Return how many of R patterns have a statistic as large as the seen one in absolute value.

        Compared as products, since identical groups have a standard error of zero; ties count, rounding is allowed for.
        """
        gain_R, error_R, _ = self._statistic(signs_RG)
        return int((np.abs(gain_R) * self._error >= self.gain * error_R - self._rounding).sum())

    def _statistic(self, signs_RG: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return for R patterns the gain in mIoU, its standard error, and the part of that which signs alone have."""
        K = self._classes
        moved_R2K = signs_RG @ self._half_G2K
        new_R2K, old_R2K = self._mean_2K + moved_R2K, self._mean_2K - moved_R2K
        new_slope_RK, old_slope_RK = 1 / new_R2K[:, K:], 1 / old_R2K[:, K:]
        new_iou_RK, old_iou_RK = new_R2K[:, :K] * new_slope_RK, old_R2K[:, :K] * old_slope_RK
        gain_R = (new_iou_RK - old_iou_RK).sum(axis=1) / K
        new_v_R2K = np.hstack([new_slope_RK, new_iou_RK * new_slope_RK])
        old_v_R2K = np.hstack([old_slope_RK, old_iou_RK * old_slope_RK])
        signed_RG = (new_v_R2K + old_v_R2K) @ self._half_2KG
        influence_RG = (new_v_R2K - old_v_R2K) @ self._mean_2KG + signs_RG * signed_RG
        return gain_R, _length(influence_RG), _length(signed_RG)


def _length(rows_RG: FloatArray) -> FloatArray:
    found: FloatArray = np.sqrt(np.einsum("rg,rg->r", rows_RG, rows_RG))
    return found
