"""What a challenger may not lose: each class, slices of the images, time per image, size of the model.

All conditions must be met for a PASS (an intersection-union test: Berger, "Multiparameter hypothesis testing and
acceptance sampling", Technometrics 1982), so each is tested at the full level: a challenger that violates one of them
is promoted with a chance of that level at most, however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segmill.metrics.intervals import LEAST_GROUPS
from segmill.promotion.paired import Estimate, PairedOverlaps

Outcome = Literal["met", "not met", "cannot be tested"]


@dataclass(frozen=True)
class Condition:
    """One condition of a PASS: its name, what came of it, a sentence with its figures, and these.

    ``shown_violated``: the data show the opposite, so that more data would hardly help.
    """

    name: str
    outcome: Outcome
    sentence: str
    figures: dict[str, Any] = field(default_factory=dict)
    shown_violated: bool = False

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "outcome": self.outcome, "figures": self.figures}


def class_conditions(pair: PairedOverlaps, names: Sequence[str], *, loss: float, level: float) -> list[Condition]:
    """Return for each class in the truth whether it loses less than ``loss`` IoU, one-sided at ``level``."""
    return [
        loses_less(f"class {name}", "IoU", estimate, loss, level)
        for name, estimate in zip(names, pair.gain_by_class(), strict=True)
        if not math.isnan(estimate.value)
    ]


def slice_conditions(
    counts: tuple[NDArray[Any], NDArray[Any]],
    groups: Sequence[str],
    values: Mapping[str, Sequence[str]],
    *,
    losses: Mapping[str, float],
    level: float,
) -> Iterator[Condition]:
    """Yield for each value of each column in ``losses`` whether the mIoU of its images loses less than that.

    Args:
        counts: of challenger and champion, N x K x K.
        groups: of the N images.
        values: column -> value of each of the N images.
        losses: column -> mIoU.
        level: one-sided.
    """
    for column, loss in losses.items():
        of_image = np.asarray(values[column])
        for value in np.unique(of_image):
            inside = of_image == value
            pair = PairedOverlaps.of(counts[0][inside], counts[1][inside], np.asarray(groups)[inside].tolist())
            estimate = pair.gain_in_miou()
            if not math.isnan(estimate.value):
                yield loses_less(f"slice {column}={value}", "mIoU", estimate, loss, level)


def latency_condition(latency_ms: tuple[Sequence[float], Sequence[float]], *, ratio: float, level: float) -> Condition:
    """Say whether the challenger takes less than ``ratio`` times the champion's time, by paired measurements.

    The mean of the logarithms' differences is tested with Student's t: the ratio of geometric means.
    """
    new, old = (np.log(np.asarray(times, dtype=np.float64)) for times in latency_ms)
    difference = new - old
    count = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(count) if count >= LEAST_GROUPS else math.inf
    estimate = Estimate(float(difference.mean()), error, count)
    value, high = math.exp(estimate.value), math.exp(min(estimate.high(level), 700.0))
    figures = {"ratio": value, "high": high, "most": ratio, "measurements": count}
    if high < ratio:
        said = f"The time per image is {value:.2f} times the champion's, below {ratio:g}."
        return Condition("latency", "met", said, figures)
    violated = estimate.low(level) >= math.log(ratio)
    what = "is above" if violated else "is not shown to be below"
    said = f"The time per image, {value:.2f} times the champion's, {what} {ratio:g} times."
    return Condition("latency", "not met", said, figures, violated)


def size_condition(sizes: tuple[int, int], *, ratio: float) -> Condition:
    """Say whether the challenger's files are at most ``ratio`` times as large as the champion's."""
    value = sizes[0] / sizes[1]
    met = value <= ratio
    sentence = f"The model's size is {value:.2f} times the champion's, {'at most' if met else 'above'} {ratio:g}."
    figures = {"ratio": value, "most": ratio, "bytes": sizes[0], "champion_bytes": sizes[1]}
    return Condition("size", "met" if met else "not met", sentence, figures, shown_violated=not met)


def lost(pair: PairedOverlaps, names: Sequence[str], *, level: float) -> list[str]:
    """Return the classes whose IoU is shown to be lower; the chance of any wrong name is ``level`` at most.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    found = [
        (Estimate(-one.value, one.error, one.groups).p_above(0.0), name)
        for name, one in zip(names, pair.gain_by_class(), strict=True)
        if not math.isnan(one.value) and not math.isinf(one.error)
    ]
    named = []
    for place, (p_value, name) in enumerate(sorted(found)):
        if p_value > level / (len(found) - place):
            break
        named.append(name)
    return named


def loses_less(name: str, what: str, gain: Estimate, loss: float, level: float) -> Condition:
    """Judge one loss. One that even an equal model would often be refused for cannot be tested: it vetoes if shown.

    Where the interval reaches half of the margin at most, an equal model misses it with a chance of ``level`` at most.
    """
    reach = gain.reach(level)
    known = math.isfinite(reach)
    figures = {
        "gain": gain.value,
        "low": gain.value - reach if known else None,
        "high": gain.value + reach if known else None,
        "most_loss": loss,
        "groups": gain.groups,
    }
    change = f"{what} {gain.value:+.4f}"
    change += f", one-sided down to {gain.value - reach:+.4f}" if known else f" in {gain.groups} groups"
    if gain.value - reach > -loss:
        return Condition(name, "met", f"{name}: {change}; it does not lose {loss:g}.", figures)
    if 2 * reach > loss:
        if known and gain.value + reach < 0:
            return Condition(name, "not met", f"{name} is shown to be worse: {change}.", figures, shown_violated=True)
        return Condition(name, "cannot be tested", f"{name} is too rare to test: {change}.", figures)
    violated = gain.value + reach < -loss
    said = "loses" if violated else "is not shown to lose less than"
    return Condition(name, "not met", f"{name} {said} {loss:g}: {change}.", figures, violated)
