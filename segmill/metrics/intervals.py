"""Confidence intervals of scores and of a gain in mIoU: a bootstrap over groups, valid for few groups too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError
from segmill.metrics.judging import of_present
from segmill.metrics.scores import nanmean, overlap, ratio

FloatArray = NDArray[np.float64]
RESAMPLES = 4000
# Two groups agree by chance too easily, and one says nothing about the spread.
LEAST_GROUPS = 3


@dataclass(frozen=True)
class Gain:
    """The gain in mIoU of one model over another on the same images, and the interval around it.

    ``estimate``, ``low`` and ``high`` are differences in -1..1; ``low`` and ``high`` bound the gain at the
    confidence asked for. All three are NaN where no class can be compared.
    """

    estimate: float
    low: float
    high: float
    groups: int
    classes: tuple[int, ...]

    @property
    def enough_groups(self) -> bool:
        return self.groups >= LEAST_GROUPS


@dataclass(frozen=True)
class Interval:
    """A score in 0..1, the interval around it and the groups behind it. NaN where no pixel was counted."""

    estimate: float
    low: float
    high: float
    groups: int

    @property
    def enough_groups(self) -> bool:
        return self.groups >= LEAST_GROUPS


def gain_interval(
    new_counts_NKK: NDArray[Any],
    old_counts_NKK: NDArray[Any],
    groups: Sequence[str],
    *,
    confidence: float,
    seed: int,
    resamples: int = RESAMPLES,
) -> Gain:
    """Estimate mIoU(new) - mIoU(old) and its two-sided interval.

    Whole groups are drawn with replacement, the same ones for both models: images of one patient or one drive
    are not independent, and a hard group is hard for both models. The interval is the estimate
    plus and minus the draws' standard deviation times Student's t for as many groups. In simulations of two
    equal models that keeps the nominal rate of false positives from 3 groups on; percentiles of the
    draws, even expanded ones, report a chance win as a gain up to five times as often.

    The classes in the truth count, as in ``segmill.metrics.judging``; in a draw those that its groups hold.

    Args:
        new_counts_NKK: integer, one confusion table per image (rows truth).
        old_counts_NKK: the same images in the same order.
        groups: the N images' group names.
        confidence: of the two-sided interval, in 0.5..1 (0.95: 2.5 % on either side).
        seed: decides the draws.
        resamples: number of draws.

    Raises:
        InputError: shapes differ, the truths differ, or there is no image.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Hesterberg, "What
    Teachers Should Know About the Bootstrap", The American Statistician 2015 (t with bootstrap error).
    """
    check_pair(new_counts_NKK, old_counts_NKK, groups, confidence)
    share_GN, everything_1G, draws_RG = _draws(groups, seed, resamples)
    parts = [share_GN @ part for counts in (new_counts_NKK, old_counts_NKK) for part in overlap(counts)]
    estimate, classes = _difference(everything_1G, parts)
    spread, _ = _difference(draws_RG, parts)
    middle = float(estimate[0])
    low, high = _bounds(middle, spread, len(share_GN), confidence) or (-1.0, 1.0)
    compared = tuple(int(index) for index in np.flatnonzero(classes[0]))
    return Gain(middle, low, high, len(share_GN), compared)


def score_intervals(
    counts_NKK: NDArray[Any], groups: Sequence[str], *, confidence: float, seed: int, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Return ``miou``, ``mdice`` and ``accuracy`` of one model with their two-sided intervals, within 0..1.

    Arguments as for ``gain_interval``, and the same bootstrap. With one group an interval is all of 0..1; a score that
    no pixel was counted for is NaN throughout.
    """
    share_GN, everything_1G, draws_RG = _draws(groups, seed, resamples)
    parts = [share_GN @ part for part in overlap(counts_NKK)]
    found = {}
    for name, score in _SCORES.items():
        middle = float(score(*(everything_1G @ part for part in parts))[0])
        bounds = _bounds(middle, score(*(draws_RG @ part for part in parts)), len(share_GN), confidence)
        low, high = (float(np.clip(bound, 0.0, 1.0)) for bound in bounds or (0.0, 1.0))
        found[name] = Interval(middle, low, high, len(share_GN))
    return found


def iou_intervals(
    counts_NKK: NDArray[Any], groups: Sequence[str], *, confidence: float, seed: int, resamples: int = RESAMPLES
) -> list[Interval]:
    """Return the IoU of each class (K) of one model with its two-sided interval; see ``score_intervals``."""
    share_GN, everything_1G, draws_RG = _draws(groups, seed, resamples)
    parts = [share_GN @ part for part in overlap(counts_NKK)]
    middle_1K, spread_RK = (_iou(*(weights @ part for part in parts)) for weights in (everything_1G, draws_RG))
    found = []
    for middle, spread_R in zip(middle_1K[0].tolist(), spread_RK.T, strict=True):
        low, high = _bounds(middle, spread_R, len(share_GN), confidence) or (0.0, 1.0)
        found.append(Interval(middle, float(np.clip(low, 0.0, 1.0)), float(np.clip(high, 0.0, 1.0)), len(share_GN)))
    return found


def _iou(both: FloatArray, truth: FloatArray, prediction: FloatArray) -> FloatArray:
    """Return the IoU of each class, from the pixels in both, in the truth and in the prediction; R x K each."""
    return of_present(both, truth + prediction - both, truth)


# Of the pixels in both, in the truth and in the prediction, R x K each, to R values.
_SCORES: dict[str, Callable[[FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "miou": lambda both, truth, prediction: nanmean(_iou(both, truth, prediction)),
    "mdice": lambda both, truth, prediction: nanmean(of_present(2 * both, truth + prediction, truth)),
    "accuracy": lambda both, truth, prediction: ratio(both.sum(axis=-1), truth.sum(axis=-1)),
}


def _draws(groups: Sequence[str], seed: int, resamples: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return which group (G) each image (N) is in, every group once, and how often each of R draws holds each group."""
    names, group_of_image = np.unique(np.asarray(groups), return_inverse=True)
    share_GN = np.zeros((len(names), len(groups)))
    share_GN[group_of_image, np.arange(len(groups))] = 1.0
    evenly = np.full(len(names), 1 / len(names))
    draws_RG = np.random.default_rng(seed).multinomial(len(names), evenly, resamples)
    return share_GN, np.ones((1, len(names))), draws_RG.astype(np.float64)


def _bounds(middle: float, spread_R: FloatArray, groups: int, confidence: float) -> tuple[float, float] | None:
    """Return the interval around ``middle`` by the draws; None for one group, which says nothing of the spread."""
    known = spread_R[~np.isnan(spread_R)]
    if not known.size:
        return float("nan"), float("nan")
    if groups == 1:
        return None
    # The draws' variance is (G - 1) / G of the unbiased one.
    error = float(known.std()) * np.sqrt(groups / (groups - 1))
    reach = student_t_quantile((1 + confidence) / 2, groups - 1) * error
    return middle - reach, middle + reach


def check_pair(
    new_counts_NKK: NDArray[Any], old_counts_NKK: NDArray[Any], groups: Sequence[str], confidence: float
) -> None:
    """Raise InputError unless both are counts of the same images in the same order, one group each."""
    if new_counts_NKK.shape != old_counts_NKK.shape or new_counts_NKK.ndim != 3:
        raise InputError(
            f"Counts of the two models have shapes {new_counts_NKK.shape} and {old_counts_NKK.shape}; "
            "both must be N x K x K over the same images and classes."
        )
    if len(groups) != len(new_counts_NKK) or not len(groups):
        raise InputError(f"{len(groups)} groups came for {len(new_counts_NKK)} images; give one per image.")
    if not np.array_equal(new_counts_NKK.sum(axis=2), old_counts_NKK.sum(axis=2)):
        raise InputError("The two models were scored on different truths; score both on the same images.")
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence is {confidence}; allowed is between 0.5 and 1, for example 0.95.")


def _difference(weights_RG: FloatArray, parts: list[FloatArray]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the R differences in mIoU for groups weighted so, and which of the K classes each one counts."""
    new, truth, new_predicted, old, _, old_predicted = (weights_RG @ part for part in parts)
    difference_RK = _iou(new, truth, new_predicted) - _iou(old, truth, old_predicted)
    return nanmean(difference_RK), ~np.isnan(difference_RK)


def student_t_quantile(probability: float, freedom: int) -> float:
    """Return the value that Student's t with ``freedom`` degrees of freedom stays below with ``probability``."""
    from scipy.special import stdtrit  # here, since it takes 0.2 s and the flow process seldom needs it

    return float(stdtrit(freedom, probability))
