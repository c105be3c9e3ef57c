"""What moved: windows of what was served against the images that a version learned from, since when, and how sure.

For each statistic the last 1, 2, 4, ... windows are tested against the reference, by Welch's test of the means and
Kolmogorov's and Smirnov's of the histograms; the smallest p-value counts, times the number of tests (Bonferroni). Over
the statistics p-values are corrected by Holm, so that without any change something is named at one look in 1 /
``level`` at most. Images that come one after another are alike, and each counts for less than one: by how much the
means of neighbouring windows differ tells how much less. Since when is the change point that the likelihood favours
(CUSUM).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segmill.monitoring.statistics import COLORS, Scale, scale_of
from segmill.monitoring.sums import Sums, ValueSums
from segmill.monitoring.usual import FIRST_WINDOWS, UsualImages, usual_of
from segmill.monitoring.windows import Window

LEVEL = 0.01
LEAST_EFFECT = 0.2  # in standard deviations: small by Cohen, "Statistical Power Analysis", 1988
LEAST_DISTANCE = 0.15  # of the distributions: the largest difference of their cumulative shares
VARIED = 1.5  # times the reference's standard deviation
LEAST_COLORS = 0.05  # of the pixels that have another colour
LEAST_IMAGES = 5
ROUNDING = 1e-9  # of a mean, whose scale is between 0.5 and 32 wide
LEAST_WINDOWS = 8  # to tell how alike neighbouring images are
REFERENCE_WINDOWS = 24
COLORS_NAME = "colours"
COLORS_SCALE = Scale("colours", "share of the pixels whose colour is another, 0 to 1", 0.0, 1.0)
CHI_SQUARED_MEDIAN = 0.4549364  # with one degree of freedom


@dataclass(frozen=True)
class Movement:
    """What a statistic did.

    Attributes:
        name, scale: of the statistic.
        usual, usual_low, usual_high: mean and middle 95 % of the reference's images.
        now: mean of the ``images`` images since the change; of all where nothing moved.
        effect: how far the mean moved, in standard deviations of the reference; for colours the share of the pixels.
        outside: share of the images outside the reference's middle 95 %, 5 % being usual; None for colours.
        p_value: corrected for the statistics and the spans of windows that were tried.
        moved: p_value is below the level, and the change is large enough to matter.
        since: start of the first window of the change, seconds since 1970; None where nothing moved.
        means: of each window, None where it has no image.
        words: what happened, a part of a sentence; "" where nothing moved.
    """

    name: str
    scale: Scale
    usual: float
    usual_low: float
    usual_high: float
    now: float
    effect: float
    outside: float | None
    images: int
    p_value: float
    moved: bool
    since: int | None
    means: tuple[float | None, ...]
    words: str

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "usual": self.usual, "usual_low": self.usual_low, "usual_high": self.usual_high,
            "now": self.now, "effect": self.effect, "outside": self.outside, "images": self.images,
            "p_value": self.p_value, "moved": self.moved, "since": self.since,
            "says": self.words,
        }  # fmt: skip


def reference_of(windows: Sequence[Window]) -> tuple[UsualImages, Sequence[Window]]:
    """Return the reference that a version's first windows make, where it brings none, and the windows after these."""
    count = min(REFERENCE_WINDOWS, max(1, len(windows) // 2))
    return usual_of([one.sums for one in windows[:count]], FIRST_WINDOWS), windows[count:]


def compare(windows: Sequence[Window], usual: UsualImages, *, level: float = LEVEL) -> list[Movement]:
    """Return what each statistic did, what moved most surely first.

    Args:
        windows: of one version, in the order of time.
        usual: the reference.
        level: the probability that something is named where nothing moved, at one look.
    """
    if not windows:
        return []
    series = [
        _ValueSeries(name, windows, usual)
        for name, own in usual.sums.values.items()
        if own.count and any(_has(one, name) for one in windows)
    ]
    every: list[_ValueSeries | _ColorSeries] = [*series, _ColorSeries(windows, usual)]
    tests = [one.test() for one in every]
    corrected = _holm([p_value for p_value, _ in tests])
    found = [
        one.movement(p_value, length if p_value < level else None)
        for one, p_value, (_, length) in zip(every, corrected, tests, strict=True)
    ]
    return sorted(found, key=lambda one: (not one.moved, one.p_value, -abs(one.effect)))


def _has(window: Window, name: str) -> bool:
    return name in window.sums.values and window.sums.values[name].count > 0


class _ValueSeries:
    """One statistic of the windows that have it."""

    def __init__(self, name: str, windows: Sequence[Window], usual: UsualImages) -> None:
        self._name, self._windows, self._groups = name, windows, usual.groups_of(name)
        own = self._own = usual.sums.values[name]
        self._error = float(np.fmax(usual.errors[name], math.sqrt(own.variance / own.count) if own.count > 1 else 0.0))
        self._some = [one for one in windows if _has(one, name)]
        self._sums = [one.sums.values[name] for one in self._some]
        self._mean_T = np.array([one.mean for one in self._sums])
        error_T = np.sqrt(_pooled(self._sums, own) / np.array([one.count for one in self._sums]))
        self._alike = _alike(self._mean_T, error_T)
        self._error_T = error_T * math.sqrt(self._alike)

    def test(self) -> tuple[float, int]:
        """Return the p-value that the last windows differ, and how many differ most surely."""
        best: tuple[float, int, bool] = (1.0, -len(self._sums), True)
        lengths = _lengths(len(self._sums))
        for length in lengths:
            last = _merged(self._sums[-length:])
            if last.count >= LEAST_IMAGES:
                by_mean = _welch(last, self._alike, self._own, self._error, self._groups)
                by_shape = _smirnov(last, self._alike, self._own, self._error)
                p_value = min(1.0, 2 * len(lengths) * min(by_mean, by_shape))
                best = min(best, (p_value, -length, by_mean <= by_shape))
        self._by_mean = best[2]
        return best[0], -best[1]

    def movement(self, p_value: float, length: int | None) -> Movement:
        """Say what it did. ``length``: the last windows that differ surely, None where none do."""
        own, scale = self._own, scale_of(self._name)
        deviation, least = math.sqrt(own.variance) if own.count > 1 else math.nan, (scale.high - scale.low) / 1e6
        change = 0
        if length:
            if self._by_mean:
                after = _merged(self._sums[-length:]).mean
                change = _change_point(self._mean_T, self._error_T, own.mean, after)
            else:
                change = _last_level_since(np.array([_distance(one, own) for one in self._sums]))
        last = _merged(self._sums[change:])
        effect = _effect(last.mean - own.mean, deviation, least)
        moved = bool(length) and (abs(effect) >= LEAST_EFFECT or _distance(last, own) >= LEAST_DISTANCE)
        return Movement(
            name=self._name, scale=scale, usual=own.mean, usual_low=own.quantile(self._name, 0.025),
            usual_high=own.quantile(self._name, 0.975), now=last.mean, effect=effect, outside=_outside(last, own),
            images=last.count, p_value=p_value, moved=moved, since=self._some[change].start if moved else None,
            means=tuple(one.sums.values[self._name].mean if _has(one, self._name) else None for one in self._windows),
            words=_words(effect, _ratio(last, own)) if moved else "",
        )  # fmt: skip


class _ColorSeries:
    """The mean colour histogram of each window; its bins are tested each, corrected for their number."""

    def __init__(self, windows: Sequence[Window], usual: UsualImages) -> None:
        self._windows, self._groups, own = windows, usual.groups, usual.sums
        self._own_N = own.colors / max(own.images, 1)
        self._error_N = np.fmax(usual.color_errors, np.sqrt(_color_variance([own]) / max(own.images, 1)))
        self._count_T = np.array([one.sums.images for one in windows])
        self._mean_TN = np.array([one.sums.colors / max(one.sums.images, 1) for one in windows])
        self._variance_N = _color_variance([one.sums for one in windows])
        # How alike neighbours are, seen along the direction in which colours moved.
        along_N = self._mean(0) - self._own_N
        spread = math.sqrt(float(np.square(along_N) @ self._variance_N))
        self._alike = _alike(self._mean_TN @ along_N, spread / np.sqrt(np.maximum(self._count_T, 1)))

    def _mean(self, begin: int) -> NDArray[np.float64]:
        count_T = self._count_T[begin:, None]
        mean_N: NDArray[np.float64] = (self._mean_TN[begin:] * count_T).sum(axis=0) / max(int(count_T.sum()), 1)
        return mean_N

    def test(self) -> tuple[float, int]:
        """As of ``_ValueSeries``."""
        best, lengths = (1.0, -len(self._windows)), _lengths(len(self._windows))
        for length in lengths:
            count = int(self._count_T[-length:].sum())
            variance_N = self._variance_N * self._alike / max(count, 1) + np.square(self._error_N)
            known_N = variance_N > 0
            if count >= LEAST_IMAGES and known_N.any():
                difference_N = np.abs(self._mean(len(self._windows) - length) - self._own_N)
                largest = float((difference_N[known_N] / np.sqrt(variance_N[known_N])).max())
                p_value = 2 * float(stats.t.sf(largest, max(1, min(count - 1, self._groups - 1))))
                best = min(best, (min(1.0, len(lengths) * len(known_N) * p_value), -length))
        return best[0], -best[1]

    def _other(self, mean_N: NDArray[np.float64], count: int) -> float:
        """Return the share of pixels with another colour, less what chance alone gives so few images."""
        error_N = np.sqrt(self._variance_N * self._alike / max(count, 1) + np.square(self._error_N))
        by_chance = math.sqrt(2 / math.pi) * float(error_N.sum())  # mean of the absolute value of a normal variable
        return max(0.0, (float(np.abs(mean_N - self._own_N).sum()) - by_chance) / 2)

    def movement(self, p_value: float, length: int | None) -> Movement:
        """As of ``_ValueSeries``."""
        other_T = np.array(
            [self._other(mean_N, count) for mean_N, count in zip(self._mean_TN, self._count_T, strict=True)]
        )
        change = _last_level_since(other_T) if length else 0
        effect = self._other(self._mean(change), int(self._count_T[change:].sum()))
        moved = bool(length) and effect >= LEAST_COLORS
        return Movement(
            name=COLORS_NAME, scale=COLORS_SCALE, usual=0.0, usual_low=0.0, usual_high=LEAST_COLORS, now=effect,
            effect=effect, outside=None, images=int(self._count_T[change:].sum()), p_value=p_value, moved=moved,
            since=self._windows[change].start if moved else None,
            means=tuple(float(one) if count else None for one, count in zip(other_T, self._count_T, strict=True)),
            words=f"{effect:.0%} of the pixels have another colour" if moved else "",
        )  # fmt: skip


def _lengths(windows: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of windows."""
    return [2**power for power in range(windows.bit_length()) if 2**power < windows] + [windows]


def _merged(every: Sequence[ValueSums]) -> ValueSums:
    whole = ValueSums()
    for one in every:
        whole = whole.merged(one)
    return whole


def _pooled(every: Sequence[ValueSums], own: ValueSums) -> float:
    """Return the variance of images within a window; the reference's where no window has two images."""
    many = [one for one in every if one.count > 1]
    if not many:
        return own.variance if own.count > 1 else 0.0
    return sum(one.variance * (one.count - 1) for one in many) / sum(one.count - 1 for one in many)


def _color_variance(every: Sequence[Sums]) -> NDArray[np.float64]:
    """Return the variance of images within a window, of each bin."""
    many = [one for one in every if one.images > 1]
    squares_N = sum((one.color_squares - np.square(one.colors) / one.images for one in many), np.zeros(COLORS))
    return np.maximum(squares_N, 0) / max(1, sum(one.images - 1 for one in many))


def _alike(mean_T: NDArray[np.float64], error_T: NDArray[np.float64]) -> float:
    """Return for how many images of the stream one stands, at least 1: neighbouring windows tell.

    The squared difference of two neighbours, over what independent images would give, has the median of chi squared
    with one degree of freedom. A step or a slow drift moves the median little.
    """
    expected_T = np.square(error_T[1:]) + np.square(error_T[:-1])
    known_T = expected_T > 0
    if known_T.sum() < LEAST_WINDOWS - 1:
        return 1.0
    ratio_T = np.square(np.diff(mean_T))[known_T] / expected_T[known_T]
    return max(1.0, float(np.median(ratio_T)) / CHI_SQUARED_MEDIAN)


def _welch(last: ValueSums, alike: float, own: ValueSums, error: float, groups: int) -> float:
    """Return the p-value that two means differ, each with its own variance (Welch, 1947)."""
    one, other = alike * last.variance / last.count, error**2
    difference = last.mean - own.mean
    if abs(difference) <= ROUNDING:
        return 1.0
    if one + other <= ROUNDING**2:
        return 0.0
    degrees = (one + other) ** 2 / (one**2 / max(1.0, last.count / alike - 1) + other**2 / max(1, groups - 1))
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(one + other), degrees))


def _smirnov(last: ValueSums, alike: float, own: ValueSums, error: float) -> float:
    """Return the p-value that two histograms differ, each image counted as its part of an independent one."""
    one, other = last.count / alike, float(own.count)
    if error > 0 and own.variance > 0:
        other = min(other, own.variance / error**2)
    return float(stats.kstwobign.sf(_distance(last, own) * math.sqrt(one * other / (one + other))))


def _distance(last: ValueSums, own: ValueSums) -> float:
    cumulative = np.cumsum(last.histogram) / last.count - np.cumsum(own.histogram) / own.count
    return float(np.abs(cumulative).max())


def _outside(last: ValueSums, own: ValueSums) -> float:
    """Return the share of images in bins outside of those that hold the reference's middle 95 %."""
    share = np.cumsum(own.histogram) / own.count
    low, high = int(np.searchsorted(share, 0.025)), int(np.searchsorted(share, 0.975))
    return float(1 - last.histogram[low : high + 1].sum() / last.count)


def _effect(difference: float, deviation: float, least: float) -> float:
    """Return a difference in standard deviations; infinite where the reference's images were all the same."""
    if deviation > least:
        return difference / deviation
    return 0.0 if abs(difference) <= least else math.copysign(math.inf, difference)


def _change_point(mean_T: NDArray[np.float64], error_T: NDArray[np.float64], before: float, after: float) -> int:
    """Return the number of the window from which on ``after`` is more likely the mean than ``before``."""
    weight_T = 1 / np.square(np.maximum(error_T, 1e-12 + float(error_T.max(initial=0.0)) * 1e-3))
    ratio_T = weight_T * (np.square(mean_T - before) - np.square(mean_T - after))
    evidence_T = np.cumsum(ratio_T[::-1])[::-1]
    return int(np.argmax(evidence_T))


def _last_level_since(other_T: NDArray[np.float64]) -> int:
    """Return the change point of a series that grew from near its least to its last level."""
    after = float(np.median(other_T[-3:]))
    return _change_point(other_T, np.ones(len(other_T)), min(float(other_T.min()), after), after)


def _ratio(last: ValueSums, own: ValueSums) -> float:
    """Return the ratio of two standard deviations, 1 where one is not known or 0."""
    if min(last.count, own.count) < 2 or min(last.variance, own.variance) <= 0:
        return 1.0
    return math.sqrt(last.variance / own.variance)


def _words(effect: float, ratio: float) -> str:
    size, said = abs(effect), []
    if size >= LEAST_EFFECT:
        how = "a little" if size < 0.5 else "clearly" if size < 1.2 else "far"
        said.append(f"{how} {'higher' if effect > 0 else 'lower'}")
    if not 1 / VARIED < ratio < VARIED:
        said.append("more varied" if ratio > 1 else "less varied")
    return " and ".join(said) or "distributed differently"


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, "A simple sequentially rejective procedure", 1979)."""
    order = np.argsort(p_values)
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
