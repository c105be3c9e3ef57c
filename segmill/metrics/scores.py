"""IoU, Dice and accuracy from confusion counts: sum first, divide once; an absent class is NaN.

Every function takes ``counts``, integer, of shape K x K or any number of leading axes over that (for example
N x K x K, one table per image). Leading axes are summed before anything is divided: the score of a set is
never the average of its images' scores.

Source: Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.2 (IoU over the
set); Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology 1945.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError

FloatArray = NDArray[np.float64]


def overlap(counts: NDArray[Any]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return per class the pixels in both, in the truth, and in the prediction; shape ... x K each.

    Leading axes are kept: this is the one place where tables are read but not summed.

    Raises:
        InputError: the last two axes are not square.
    """
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise InputError(f"Counts have shape {counts.shape}; allowed is K x K or N x K x K.")
    counts = counts.astype(np.float64)
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide; 0 / 0 is NaN: nothing was there to be right or wrong about."""
    with np.errstate(invalid="ignore"):
        return np.asarray(numerator / denominator, dtype=np.float64)


def nanmean(values: FloatArray) -> FloatArray:
    """Average the last axis over what is not NaN; NaN, without a warning, where all of it is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


def total(counts: NDArray[Any]) -> NDArray[Any]:
    """Sum all leading axes; returns K x K."""
    return np.asarray(counts.sum(axis=tuple(range(counts.ndim - 2))))


def iou(counts: NDArray[Any]) -> FloatArray:
    """Intersection over union per class, in 0..1; NaN where the class is in neither truth nor prediction."""
    both, truth, prediction = overlap(total(counts))
    return ratio(both, truth + prediction - both)


def miou(counts: NDArray[Any]) -> float:
    """Mean IoU over the classes that are present, in 0..1; NaN where no pixel was counted."""
    return float(nanmean(iou(counts)))


def dice(counts: NDArray[Any]) -> FloatArray:
    """Dice (F1) per class, in 0..1; NaN where the class is in neither truth nor prediction."""
    both, truth, prediction = overlap(total(counts))
    return ratio(2 * both, truth + prediction)


def mdice(counts: NDArray[Any]) -> float:
    """Mean Dice over the classes that are present, in 0..1; NaN where no pixel was counted."""
    return float(nanmean(dice(counts)))


def accuracy(counts: NDArray[Any]) -> float:
    """The share of counted pixels that are right, in 0..1; NaN where no pixel was counted."""
    both, truth, _ = overlap(total(counts))
    return float(ratio(both.sum(), truth.sum()))
