"""What two models got right in each group of the test split, and the jackknife over groups of what that adds up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.metrics.intervals import LEAST_GROUPS, FloatArray, student_t_quantile
from segmill.metrics.judging import of_present
from segmill.metrics.scores import nanmean, overlap


class Estimate(NamedTuple):
    """A difference of two models with its standard error by the jackknife over ``groups`` groups.

    ``error`` is infinite where fewer than LEAST_GROUPS groups say anything of it.
    """

    value: float
    error: float
    groups: int

    def reach(self, level: float) -> float:
        """Return Student's t times the standard error: an interval of one-sided ``level`` reaches so far."""
        return float("inf") if np.isinf(self.error) else student_t_quantile(1 - level, self.groups - 1) * self.error

    def low(self, level: float) -> float:
        return self.value - self.reach(level)

    def high(self, level: float) -> float:
        return self.value + self.reach(level)

    def p_above(self, limit: float) -> float:
        """Return the one-sided p-value of "the difference is above ``limit``", by Student's t: approximate."""
        from scipy.special import stdtr

        if np.isinf(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.value > limit else 1.0
        return float(stdtr(self.groups - 1, (limit - self.value) / self.error))


@dataclass(frozen=True)
class PairedOverlaps:
    """Pixels of G groups and K classes, G x K each: in the truth, and each model's intersection and union with it."""

    truth: FloatArray
    new_both: FloatArray
    new_either: FloatArray
    old_both: FloatArray
    old_either: FloatArray

    @classmethod
    def of(cls, new_NKK: NDArray[Any], old_NKK: NDArray[Any], groups: Sequence[str]) -> PairedOverlaps:
        """Sum the counts of N images by group, in the order of the groups' names."""
        names, group_of_image = np.unique(np.asarray(groups), return_inverse=True)

        def by_group(counts_NKK: NDArray[Any]) -> list[FloatArray]:
            parts = []
            for part_NK in overlap(counts_NKK):
                sums_GK = np.zeros((len(names), part_NK.shape[1]))
                np.add.at(sums_GK, group_of_image, part_NK)
                parts.append(sums_GK)
            return parts

        new, truth, new_predicted = by_group(new_NKK)
        old, _, old_predicted = by_group(old_NKK)
        return cls(truth, new, truth + new_predicted - new, old, truth + old_predicted - old)

    def gain_in_miou(self) -> Estimate:
        """Return mIoU(new) - mIoU(old) over the classes in the truth."""
        whole_K, left_out_GK = self._gains()
        return _jackknife(float(nanmean(whole_K)), nanmean(left_out_GK))

    def gain_by_class(self) -> list[Estimate]:
        """Return IoU(new) - IoU(old) of each class from the groups that hold it; NaN where the truth has none."""
        whole_K, left_out_GK = self._gains()
        holds_GK = (self.new_either > 0) | (self.old_either > 0)
        return [_jackknife(float(whole_K[k]), left_out_GK[holds_GK[:, k], k]) for k in range(len(whole_K))]

    def _gains(self) -> tuple[FloatArray, FloatArray]:
        """Return the gain in IoU of all groups (K) and of all but each one (G x K); NaN where no truth is left."""
        parts = [self.new_both, self.new_either, self.old_both, self.old_either]
        sums = [part.sum(axis=0) for part in parts]
        truth_K = self.truth.sum(axis=0)
        rest_GK = truth_K - self.truth
        whole = of_present(sums[0], sums[1], truth_K) - of_present(sums[2], sums[3], truth_K)
        new_both, new_either, old_both, old_either = (total - part for total, part in zip(sums, parts, strict=True))
        return whole, of_present(new_both, new_either, rest_GK) - of_present(old_both, old_either, rest_GK)


def _jackknife(value: float, left_out_G: FloatArray) -> Estimate:
    """Return the estimate with the standard error of the values without one group each.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
    """
    groups = len(left_out_G)
    if groups < LEAST_GROUPS or np.isnan(left_out_G).any():
        return Estimate(value, float("inf"), groups)
    spread = (groups - 1) / groups * ((left_out_G - left_out_G.mean()) ** 2).sum()
    return Estimate(value, float(np.sqrt(spread)), groups)
