"""Conformal p-values: how unusual a score is among those of images that were used for nothing else, by group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segmill.errors import InputError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UsualScores:
    """Scores that new ones are held against; a high score is an unusual one. Made by ``usual_scores``.

    Images of one group (a patient, a drive, a camera) are alike, so each group counts once, however many images it
    has: an image has the weight 1 / images of its group. Then the p-value of an image of a new group, exchangeable with
    these groups, is at most a with probability at most a, for every a (Lee, Barber and Willett, "Distribution-free
    inference with hierarchical data", 2023); no more is promised of several images of one group together.

    Attributes:
        scores_N: ascending.
        at_least_N: the weight of the scores from each one on, so at_least_N[0] is ``groups``.
        groups: how many.
    """

    scores_N: FloatArray
    at_least_N: FloatArray
    groups: int

    @property
    def smallest(self) -> float:
        """The smallest p-value that there can be: below it no false-alarm rate can be kept with so few groups."""
        return float(self._share(0.0))

    def p_values(self, scores: ArrayLike) -> FloatArray:
        """Return the p-value of each score, in (0, 1]; a score that is NaN is as unusual as can be."""
        wanted = np.asarray(scores, np.float64)
        more_N = np.append(self.at_least_N, 0.0)
        found = self._share(more_N[np.searchsorted(self.scores_N, wanted, side="left")])
        return np.where(np.isnan(wanted), self.smallest, found)

    def threshold(self, rate: float) -> float:
        """Return the score above which the p-value is at most ``rate``, so that a false alarm is at most as likely.

        Raises InputError where that takes more groups than there are.
        """
        if self.smallest > rate:
            raise InputError(
                f"{self.groups} calibration groups can't keep a false-alarm rate of {rate:g}",
                f"it takes {groups_needed(rate)}, or a rate of {self.smallest:.3g} at least",
            )
        usual_N = self._share(self.at_least_N) > rate
        return float(self.scores_N[np.flatnonzero(usual_N)[-1]]) if usual_N.any() else -math.inf

    def _share(self, at_least: ArrayLike) -> FloatArray:
        """Return (1 + weight) / (groups + 1), without the last digits, where sums of weights like 1/3 go wrong."""
        return np.round((1.0 + np.asarray(at_least)) / (self.groups + 1), 12)


def groups_needed(rate: float) -> int:
    """Return how many calibration groups a false-alarm rate takes: the p-value of the most unusual score is 1/(G+1)."""
    return max(1, math.ceil(1 / rate - 1 - 1e-9))


def usual_scores(scores: ArrayLike, groups: Sequence[str]) -> UsualScores:
    """Return the scores of images, to hold others against; their groups are ``groups``, in the same order.

    Raises InputError where there is none, their numbers differ, or a score is not finite.
    """
    scores_N = np.asarray(scores, np.float64)
    if scores_N.shape != (len(groups),) or not len(groups):
        raise InputError(f"{scores_N.size} scores of {len(groups)} images can't calibrate", "one score per image")
    if not np.isfinite(scores_N).all():
        raise InputError("a calibration score is not finite", "leave the image out, or mend the score")
    images = Counter(groups)
    order_N = np.argsort(scores_N, kind="stable")
    weights_N = np.array([1.0 / images[groups[number]] for number in order_N])
    return UsualScores(scores_N[order_N], np.cumsum(weights_N[::-1])[::-1], len(images))
