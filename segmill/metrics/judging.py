"""The scores that models are judged by: means over the classes that the truth holds, which no prediction can change.

A class that the truth does not hold has no true score: one stray pixel of it would count as a class with IoU 0 and
take 1/K of the mean. Training's own selection on val (``segmill.metrics.scores``) averages what truth or prediction
holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.metrics.scores import FloatArray, nanmean, overlap, ratio, total


def iou(counts: NDArray[Any]) -> FloatArray:
    """Return the intersection over union per class of K x K or N x K x K counts, in 0..1; NaN where the truth has none.

    Leading axes are summed before anything is divided.
    """
    both, truth, prediction = overlap(total(counts))
    return of_present(both, truth + prediction - both, truth)


def dice(counts: NDArray[Any]) -> FloatArray:
    """Return Dice (F1) per class, in 0..1; NaN where the truth has none. Counts as for ``iou``."""
    both, truth, prediction = overlap(total(counts))
    return of_present(2 * both, truth + prediction, truth)


def miou(counts: NDArray[Any]) -> float:
    """Return the mean IoU over the classes in the truth, in 0..1; NaN where no pixel was counted."""
    return float(nanmean(iou(counts)))


def mdice(counts: NDArray[Any]) -> float:
    """Return the mean Dice over the classes in the truth, in 0..1; NaN where no pixel was counted."""
    return float(nanmean(dice(counts)))


def of_present(numerator: FloatArray, denominator: FloatArray, truth: FloatArray) -> FloatArray:
    """Divide; NaN where ``truth`` is 0. All three have one shape."""
    return np.where(truth > 0, ratio(numerator, denominator), np.nan)
