"""The gate: may the challenger replace the champion? Arithmetic on counts; nothing is read or written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError
from segmill.metrics.intervals import LEAST_GROUPS, Gain, check_pair, gain_interval, score_intervals, student_t_quantile
from segmill.metrics.judging import iou, miou
from segmill.promotion.budget import LEAST_LEVEL, GateBudget, group_id, groups_for_promotions, groups_needed
from segmill.promotion.guards import (
    Condition,
    class_conditions,
    latency_condition,
    lost,
    size_condition,
    slice_conditions,
)
from segmill.promotion.paired import Estimate, PairedOverlaps
from segmill.promotion.policy import GateEvidence as GateEvidence
from segmill.promotion.policy import GatePolicy as GatePolicy
from segmill.promotion.swap_test import swap_test

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE", "UNDECIDABLE"]
MOST_NAMED = 5  # classes in one sentence
MOST_GROUPS = 10_000  # that a sentence asks for


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: the decision, its reasons as sentences, and the figures in those sentences.

    ``facts`` is JSON-able. Always: floor_miou, confidence, rule, samples, groups, test_groups (ids), set_number,
    judgements_left (before this one), passes, changes_by_people, level, alpha_spent (0 where nothing was read). Where
    test was read and is not sealed also challenger_miou and conditions, and, with a champion, min_gain, goal,
    champion_miou, champion_iou (per class; None where the truth has none), gain, gain_low, gain_high, p_value,
    p_value_at_least, classes_compared, classes_lost and groups_that_settle (None where none would).
    """

    decision: Decision
    reasons: list[str]
    facts: dict[str, Any]


def decide(evidence: GateEvidence, policy: GatePolicy, budget: GateBudget, *, seed: int) -> Verdict:
    """Judge a challenger on the test groups that the budget allows; under rule plain on all.

    PASS: all conditions are met. FAIL: the data show that one is not. INCONCLUSIVE: neither. UNDECIDABLE: there are too
    few groups, or no judgement is left; then no count is read.

    Args:
        evidence: counts and measurements of both models.
        policy: what is asked for.
        budget: of today's test groups.
        seed: decides the draws of the bootstrap and of the swap test.

    Raises:
        InputError: counts, groups or truths of the two models do not match, or a condition has no measurement.
    """
    _check(evidence, policy)
    if policy.rule == "lifetime":
        evidence = _only(evidence, budget.groups)
    of_gain = policy.rule == "lifetime" and evidence.champion_counts_NKK is not None
    level = budget.level if of_gain else policy.plain_level
    facts = _facts(evidence, policy, budget, level)
    if undecidable := _why_undecidable(evidence, policy, budget, level):
        return Verdict("UNDECIDABLE", undecidable, facts | {"alpha_spent": 0.0})
    if evidence.champion_counts_NKK is None:
        verdict = _first(evidence, policy, facts, seed)
    else:
        verdict = _against_champion(evidence, policy, level, facts, seed)
    if evidence.sealed:
        return _sealed(verdict, facts, _promises(policy, budget))
    return replace(verdict, reasons=[*verdict.reasons, *_promises(policy, budget)])


def promising(
    challenger_counts_NKK: NDArray[Any], champion_counts_NKK: NDArray[Any], groups: Sequence[str], policy: GatePolicy
) -> tuple[bool, str]:
    """Say whether a challenger is worth a judgement on test, by counts of both models on val, and why.

    It is where its gain on val is above what is asked for by one standard error. Val is not test: this costs nothing.
    """
    check_pair(challenger_counts_NKK, champion_counts_NKK, groups, policy.confidence)
    gain = PairedOverlaps.of(challenger_counts_NKK, champion_counts_NKK, groups).gain_in_miou()
    if math.isinf(gain.error) or math.isnan(gain.value):
        return True, f"Val has {_count(gain.groups, 'group')}, too few to screen with: the test split decides."
    said = f"On val the gain over the champion is {gain.value:+.4f} mIoU with a standard error of {gain.error:.4f}"
    if gain.value - gain.error > policy.least_gain:
        return True, f"{said}: worth a judgement on test."
    asked = f"{policy.least_gain:+g} by a standard error"
    return False, f"{said}, not above {asked}: it was not judged on test, which saves a judgement."


def _check(evidence: GateEvidence, policy: GatePolicy) -> None:
    old = evidence.champion_counts_NKK
    new = evidence.challenger_counts_NKK
    check_pair(new, new if old is None else old, evidence.groups, policy.confidence)
    if old is None:
        return
    if missing := sorted(set(policy.slices) - set(evidence.slices)):
        known = ", ".join(evidence.slices) or "none"
        raise InputError(
            f"promotion.guards.slices names {', '.join(missing)}, which no column of the manifest is",
            f"name one of these columns or remove the guard: {known}",
        )
    for name, measured in (("latency_ratio", evidence.latency_ms), ("size_ratio", evidence.bytes)):
        if getattr(policy, name) is not None and measured is None:
            raise InputError(
                f"promotion.guards.{name} is set, but it was not measured for these versions",
                f"remove it or set promotion.guards.{name} to null",
            )


def _only(evidence: GateEvidence, groups: Sequence[str]) -> GateEvidence:
    """Return the evidence of the images of these groups."""
    kept = np.isin(np.asarray(evidence.groups), np.asarray(groups))
    if kept.all():
        return evidence
    old = evidence.champion_counts_NKK
    return replace(
        evidence,
        challenger_counts_NKK=evidence.challenger_counts_NKK[kept],
        champion_counts_NKK=None if old is None else old[kept],
        groups=np.asarray(evidence.groups)[kept].tolist(),
        slices={column: np.asarray(values)[kept].tolist() for column, values in evidence.slices.items()},
    )


def _facts(evidence: GateEvidence, policy: GatePolicy, budget: GateBudget, level: float) -> dict[str, Any]:
    """Return the facts that no count goes into."""
    against = {} if evidence.champion_counts_NKK is None else {"min_gain": policy.min_gain, "goal": policy.goal}
    names = set(evidence.groups)
    return {
        "floor_miou": policy.floor_miou,
        "confidence": policy.confidence,
        "rule": policy.rule,
        **against,
        "samples": len(evidence.challenger_counts_NKK),
        "groups": len(names),
        "test_groups": sorted(map(group_id, names)),
        "set_number": budget.set_number,
        "judgements_left": budget.left,
        "passes": budget.passes,
        "changes_by_people": budget.changes_by_people,
        "level": level,
        "alpha_spent": level if against else 0.0,
    }


def _why_undecidable(evidence: GateEvidence, policy: GatePolicy, budget: GateBudget, level: float) -> list[str]:
    """Return why these groups can't decide and what would help; nothing where they can."""
    have, lifetime = len(set(evidence.groups)), policy.rule == "lifetime"
    if lifetime and not budget.left:
        used = f"All {budget.judgements} judgements of test set {budget.set_number} are used, so nothing was compared."
        return [used, budget.renewal()]
    if evidence.champion_counts_NKK is None:
        if have >= LEAST_GROUPS or (have and policy.floor_miou == 0):
            return []
        return [
            f"{_count(have, 'test group')} can't show that a version reaches the floor {policy.floor_miou:.4f}: assign "
            f"at least {LEAST_GROUPS} groups into the test split."
        ]
    if lifetime and level < LEAST_LEVEL:
        passes = f"After {_count(budget.passes, 'PASS')} on test set {budget.set_number}"
        return [f"{passes} a judgement would ask for p below {level:.2g}, which no test can show.", budget.renewal()]
    if have >= groups_needed(level):
        return []
    least = 2.0**-have
    said = (
        f"{_count(have, 'test group')} can't decide: no p-value of so few is below {least:.2g}, and this judgement "
        f"asks for {level:.2g}."
    )
    if not lifetime:
        return [said, f"promotion.rule plain takes {groups_needed(level)} test groups."]
    first, *later = groups_for_promotions(
        budget.alpha, budget.judgements, set_number=budget.set_number, floor_judgements=budget.floor_judgements
    )
    numbers = "".join(f", the {which} {count}" for which, count in zip(("second", "third"), later, strict=False))
    wanted = f"On this test set the first promotion over a champion takes {first} groups{numbers}."
    plain = groups_needed(policy.plain_level)
    return [said, wanted, budget.renewal(), f"promotion.rule plain judges one night at a time, from {plain} groups on."]


def _first(evidence: GateEvidence, policy: GatePolicy, facts: dict[str, Any], seed: int) -> Verdict:
    """Judge a version where none serves: its mIoU must reach the floor with the lower bound of its interval."""
    scores = score_intervals(evidence.challenger_counts_NKK, evidence.groups, confidence=policy.confidence, seed=seed)[
        "miou"
    ]
    facts = facts | {"challenger_miou": _number(scores.estimate), "challenger_low": _number(scores.low)}
    reached = scores.low >= policy.floor_miou  # NaN reaches nothing
    condition = Condition("floor", "met" if reached else "not met", "", {"low": _number(scores.low)})
    facts |= {"conditions": [condition.facts()]}
    said = (
        f"The challenger's test mIoU is {scores.estimate:.4f}, with {policy.confidence:.0%} confidence at least "
        f"{scores.low:.4f} ({_count(facts['groups'], 'group')}, {_count(facts['samples'], 'image')})"
    )
    newcomer = "There is no earlier champion to beat."
    if reached:
        return Verdict("PASS", [f"{said}: it reaches the floor {policy.floor_miou:.4f}.", newcomer], facts)
    if scores.estimate >= policy.floor_miou:
        more = "the lower bound is below, more test groups can decide"
        return Verdict("INCONCLUSIVE", [f"{said}; for the floor {policy.floor_miou:.4f} {more}.", newcomer], facts)
    return Verdict("FAIL", [f"{said}: it misses the floor {policy.floor_miou:.4f}.", newcomer], facts)


def _against_champion(
    evidence: GateEvidence, policy: GatePolicy, level: float, facts: dict[str, Any], seed: int
) -> Verdict:
    new, old = evidence.challenger_counts_NKK, evidence.champion_counts_NKK
    assert old is not None
    own = miou(new)
    facts = facts | {
        "challenger_miou": _number(own),
        "champion_miou": _number(miou(old)),
        "champion_iou": [_number(float(value)) for value in iou(old)],
    }
    if math.isnan(own):
        return Verdict("FAIL", ["The test split has no labelled pixel."], facts)
    pair = PairedOverlaps.of(new, old, evidence.groups)
    gain = gain_interval(new, old, evidence.groups, confidence=policy.confidence, seed=seed)
    conditions = [
        _floor(own, policy.floor_miou),
        _better(pair, gain, len(new), policy=policy, level=level, seed=seed),
        *_guards(evidence, pair, policy),
    ]
    names = lost(pair, evidence.class_names, level=policy.plain_level)
    facts |= {
        "gain": _number(gain.estimate),
        "gain_low": _number(gain.low),
        "gain_high": _number(gain.high),
        **conditions[1].figures,
        "classes_compared": list(gain.classes),
        "classes_lost": names,
        "conditions": [one.facts() for one in conditions],
    }
    reasons = [*(one.sentence for one in conditions[:2]), *_about_guards(conditions[2:], policy)]
    if names:
        reasons.append(f"Shown to be worse than the champion (Holm): {_named(names)}.")
    if np.array_equal(new, old):
        reasons.insert(0, "Challenger and champion have the same counts on every image.")
    return Verdict(_decision(conditions, policy), reasons, facts)


def _decision(conditions: Sequence[Condition], policy: GatePolicy) -> Decision:
    """All conditions must be met; one that cannot be tested is no obstacle unless the policy says so."""
    enough = ("met", "cannot be tested") if policy.untestable == "warn" else ("met",)
    if all(one.outcome in enough for one in conditions):
        return "PASS"
    return "FAIL" if any(one.shown_violated for one in conditions) else "INCONCLUSIVE"


def _floor(own: float, floor: float) -> Condition:
    reaches = own >= floor
    said = f"The challenger's test mIoU {own:.4f} {'reaches' if reaches else 'misses'} the floor {floor:.4f}."
    return Condition("floor", "met" if reaches else "not met", said, {"miou": own}, shown_violated=not reaches)


def _better(pair: PairedOverlaps, gain: Gain, images: int, *, policy: GatePolicy, level: float, seed: int) -> Condition:
    """Test the gain: against zero by swaps of groups, against another figure by the jackknife, which is approximate."""
    least = policy.least_gain
    jackknife = pair.gain_in_miou()
    if least == 0:
        tested = swap_test(pair, level=level, seed=seed)
        p_value, at_least, how = tested.p_value, tested.at_least, f"by {tested.describe()}"
    else:
        p_value, at_least, how = jackknife.p_above(least), False, "by the jackknife over groups, which is approximate"
    figures = {"p_value": p_value, "p_value_at_least": at_least, "groups_that_settle": None}
    said = (
        f"The gain over the champion is {gain.estimate:+.4f} mIoU, with {policy.confidence:.0%} confidence between "
        f"{gain.low:+.4f} and {gain.high:+.4f} ({_count(gain.groups, 'group')}, {_count(images, 'image')})."
    )
    asked = "above zero" if least == 0 else f"above {least:+g}"
    p_text = "p is above it" if at_least else f"p is {p_value:.2g}"
    tested_at = f"at the level {level:.2g} of this judgement ({p_text}, {how})"
    if p_value <= level:
        return Condition("gain", "met", f"{said} It is shown to be {asked} {tested_at}.", figures)
    if gain.high <= least:
        said = f"{said} It is not {asked}: none of the interval is."
        return Condition("gain", "not met", said, figures, shown_violated=True)
    figures["groups_that_settle"] = settling = _groups_that_settle(jackknife, least, level)
    more = f" About {settling} groups like these would settle it." if settling else ""
    return Condition("gain", "not met", f"{said} It is not shown to be {asked} {tested_at}.{more}", figures)


def _groups_that_settle(gain: Estimate, least: float, level: float) -> int | None:
    """Return how many groups like these would show the gain if it is what it seems; None where none of MOST_GROUPS."""
    if math.isinf(gain.error) or not gain.value > least:
        return None
    for groups in range(max(gain.groups, groups_needed(level)), MOST_GROUPS):
        error = gain.error * math.sqrt(gain.groups / groups)
        if gain.value - least >= student_t_quantile(1 - level, groups - 1) * error:
            return groups
    return None


def _guards(evidence: GateEvidence, pair: PairedOverlaps, policy: GatePolicy) -> list[Condition]:
    level, old = policy.plain_level, evidence.champion_counts_NKK
    conditions: list[Condition] = []
    if policy.class_loss is not None:
        conditions += class_conditions(pair, evidence.class_names, loss=policy.class_loss, level=level)
    if policy.slices and old is not None:
        counts = (evidence.challenger_counts_NKK, old)
        conditions += slice_conditions(counts, evidence.groups, evidence.slices, losses=policy.slices, level=level)
    if policy.latency_ratio is not None and evidence.latency_ms is not None:
        conditions.append(latency_condition(evidence.latency_ms, ratio=policy.latency_ratio, level=level))
    if policy.size_ratio is not None and evidence.bytes is not None:
        conditions.append(size_condition(evidence.bytes, ratio=policy.size_ratio))
    return conditions


def _about_guards(conditions: Sequence[Condition], policy: GatePolicy) -> list[str]:
    """Say what came of the guards: each that is not met, and how many are met or can't be tested."""
    if not conditions:
        return []
    met = sum(one.outcome == "met" for one in conditions)
    reasons = [f"{met} of {_count(len(conditions), 'guard')} {'is' if met == 1 else 'are'} met."]
    reasons += [one.sentence for one in conditions if one.outcome == "not met"]
    if rare := [one.name for one in conditions if one.outcome == "cannot be tested"]:
        then = "not shown to be worse" if policy.untestable == "warn" else "promotion.untestable refuses that"
        reasons.append(f"Too rare to test on these groups: {_named(rare)} ({then}).")
    return reasons


def _promises(policy: GatePolicy, budget: GateBudget) -> list[str]:
    """Say what the verdict promises over many nights."""
    if policy.rule == "plain":
        return ["promotion.rule is plain: this verdict is for one night and promises nothing over many nights."]
    used = f"This is judgement {budget.used + 1} of {budget.judgements} on test set {budget.set_number}."
    if not budget.changes_by_people:
        return [used]
    changes = _count(budget.changes_by_people, "change")
    return [used, f"The bound does not cover {changes} made by people, who could see the figures of test."]


def _sealed(verdict: Verdict, facts: dict[str, Any], promises: list[str]) -> Verdict:
    """Return the verdict without anything that the sealed groups say beside PASS or not PASS."""
    if verdict.decision == "PASS":
        return Verdict("PASS", ["The challenger passes on the sealed groups.", *promises], facts)
    said = "The challenger does not pass on the sealed groups; by how much, and on what, stays sealed."
    return Verdict("FAIL", [said, *promises], facts)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _number(value: float) -> float | None:
    """NaN is no JSON: say None."""
    return None if math.isnan(value) else value


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("S") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"
