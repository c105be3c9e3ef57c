"""The gate: is the challenger better than the champion? Arithmetic on counts; nothing is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segmill.metrics.intervals import LEAST_GROUPS, gain_interval
from segmill.metrics.scores import iou, miou

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: the decision, its reasons as sentences, and the figures in those sentences.

    ``facts`` is JSON-able: challenger_miou, floor_miou, samples; and where there is a champion champion_miou,
    champion_iou (per class; None where nothing was there to be right or wrong about), gain, gain_low, gain_high,
    min_gain, confidence, groups, classes_compared.
    """

    decision: Decision
    reasons: list[str]
    facts: dict[str, Any]


def decide(
    challenger_counts_NKK: NDArray[Any],
    champion_counts_NKK: NDArray[Any] | None,
    groups: Sequence[str],
    *,
    floor_miou: float,
    min_gain: float,
    confidence: float,
    seed: int,
) -> Verdict:
    """Judge a challenger on the test split.

    PASS: its mIoU reaches the floor and, where there is a champion, the whole interval of its gain is
    above ``min_gain``. FAIL: it misses the floor, or the whole interval is at or below ``min_gain``.
    INCONCLUSIVE: the interval holds ``min_gain``, or the test has too few groups to prove anything.

    Args:
        challenger_counts_NKK: integer confusion tables, one per test image (rows truth).
        champion_counts_NKK: the same images in the same order; None where no version serves yet.
        groups: the N images' group names, the units that are drawn in the paired bootstrap.
        floor_miou: the least mIoU that may serve, in 0..1.
        min_gain: the gain in mIoU that must be exceeded, in 0..1; 0 asks for any provable gain.
        confidence: of the two-sided interval, in 0.5..1.
        seed: decides the bootstrap's draws.

    Raises:
        InputError: counts, groups or truths of the two models do not match, or confidence is out of range.
    """
    challenger_miou = miou(challenger_counts_NKK)
    facts: dict[str, Any] = {
        "challenger_miou": _number(challenger_miou),
        "floor_miou": floor_miou,
        "samples": len(challenger_counts_NKK),
    }
    # Written so that a NaN, which no comparison holds for, is refused.
    reaches_floor = challenger_miou >= floor_miou
    reaches = "reaches" if reaches_floor else "misses"
    floor = f"The challenger's test mIoU {challenger_miou:.4f} {reaches} the floor {floor_miou:.4f}."
    if champion_counts_NKK is None:
        newcomer = "There is no earlier champion to beat."
        return Verdict("PASS" if reaches_floor else "FAIL", [floor, newcomer], facts)

    gain = gain_interval(challenger_counts_NKK, champion_counts_NKK, groups, confidence=confidence, seed=seed)
    facts |= {
        "champion_miou": _number(miou(champion_counts_NKK)),
        "champion_iou": [_number(float(value)) for value in iou(champion_counts_NKK)],
        "gain": _number(gain.estimate),
        "gain_low": _number(gain.low),
        "gain_high": _number(gain.high),
        "min_gain": min_gain,
        "confidence": confidence,
        "groups": gain.groups,
        "classes_compared": list(gain.classes),
    }
    interval = (
        f"The gain over the champion is {gain.estimate:+.4f} mIoU, with {confidence:.0%} confidence "
        f"between {gain.low:+.4f} and {gain.high:+.4f} ({_count(gain.groups, 'group')}, {_count(len(groups), 'image')})"
    )
    if not reaches_floor:
        return Verdict("FAIL", [floor, f"{interval}."], facts)
    if np.array_equal(challenger_counts_NKK, champion_counts_NKK):
        same = "Challenger and champion have the same counts on every image, so there is no gain."
        return Verdict("FAIL", [floor, same], facts)
    if not gain.enough_groups:
        too_few = f"{interval}, but so few prove nothing: assign at least {LEAST_GROUPS} groups into the test split."
        return Verdict("INCONCLUSIVE", [floor, too_few], facts)
    if gain.low > min_gain:
        return Verdict("PASS", [floor, f"{interval}, all of it above min_gain {min_gain:g}."], facts)
    if gain.high <= min_gain:
        return Verdict("FAIL", [floor, f"{interval}, none of it above min_gain {min_gain:g}."], facts)
    undecided = f"{interval}, which holds min_gain {min_gain:g}: more test groups can decide."
    return Verdict("INCONCLUSIVE", [floor, undecided], facts)


def _number(value: float) -> float | None:
    """NaN is no JSON: say None."""
    return None if np.isnan(value) else value


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
