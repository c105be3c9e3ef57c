"""The gate's facts as rows of the page: each condition with its outcome, what the verdict spent and leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

OUTCOMES = {"met": "gained", "not met": "lost", "cannot be tested": "soft"}  # to the style of the page


class ConditionRow(NamedTuple):
    """A condition of a PASS: what it asks for, what was found, and ``outcome``: met, not met or cannot be tested."""

    name: str
    outcome: str
    style: str
    asked: str
    found: str


def condition_rows(facts: Mapping[str, Any]) -> list[ConditionRow]:
    """Return a row per condition; none for a verdict that names none (of an earlier release, or on sealed groups)."""
    rows = []
    for one in facts.get("conditions", ()):
        asked, found = _condition(one["name"], one["figures"], facts)
        rows.append(ConditionRow(one["name"], one["outcome"], OUTCOMES.get(one["outcome"], ""), asked, found))
    return rows


def budget_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield title and text of what a verdict spent, what is left, what it does not cover and what is still to come."""
    if facts.get("rule") == "lifetime":
        spent = facts.get("alpha_spent") or 0.0
        said = f"alpha spent: {spent:.2g}" if spent else "no alpha spent"
        yield "level", f"{facts['level']:.2g}, one-sided; {said}"
        left = facts["judgements_left"]
        groups = f"{facts['groups']} groups, " if "groups" in facts else ""
        where = f"{groups}{facts['passes']} PASSes before"
        yield "judgements left", f"{max(left - _judged(facts), 0)} (test set {facts['set_number']}: {where})"
        if facts.get("renewal"):
            yield "renewed by", facts["renewal"]
    if open_points := list(_not_covered(facts)):
        yield "not covered", "; ".join(open_points)
    if facts.get("expires"):
        yield "waits for", f"approval, until {facts['expires'][:16].replace('T', ' ')} UTC"
    if since := facts.get("since_promotion"):
        yield "true gain", _since(since)


def _judged(facts: Mapping[str, Any]) -> bool:
    """Tell whether test was read: UNDECIDABLE reads nothing, nor does a version that val does not recommend."""
    return bool(facts.get("judged", "conditions" in facts))


def _condition(name: str, figures: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a condition asks for and what was found."""
    if name == "floor":
        if figures.get("low") is not None:
            return f"mIoU of {_share(facts['floor_miou'])} %", f"{_share(figures['low'])} % at least"
        return f"mIoU of {_share(facts['floor_miou'])} %", f"{_share(figures.get('miou'))} %"
    if name == "gain":
        margin = facts.get("goal") == "noninferiority"
        least = facts.get("min_gain") or 0.0
        asked = "no loss beyond the margin" if margin else f"above {_points(least)} points" if least else "above zero"
        p_value = "p above the level" if figures.get("p_value_at_least") else f"p {figures['p_value']:.2g}"
        return f"{asked} at level {facts['level']:.2g}", f"{_points(facts.get('gain'))} points, {p_value}"
    if "most_loss" in figures:
        low = "" if figures.get("low") is None else f", at worst {_points(figures['low'])}"
        return f"loses less than {_share(figures['most_loss'])} points", f"{_points(figures['gain'])} points{low}"
    if "ratio" in figures:
        most = f", at most {figures['high']:.2f}" if figures.get("high") else ""
        return f"at most {figures['most']:g} times the champion's", f"{figures['ratio']:.2f} times{most}"
    return "", ", ".join(f"{key} {value}" for key, value in figures.items())


def _not_covered(facts: Mapping[str, Any]) -> Iterator[str]:
    changes = facts.get("changes_by_people") or 0
    if changes:
        yield f"{changes} change{'s' if changes > 1 else ''} made by people, who could see the figures of test"
    if facts.get("rule") == "plain":
        yield "promotion.rule is plain: one night alone, nothing is promised over many"
    rare = [one["name"] for one in facts.get("conditions", ()) if one["outcome"] == "cannot be tested"]
    if rare:
        yield f"too rare to test: {', '.join(rare)}"


def _since(since: Mapping[str, Any]) -> str:
    """Say the gain of a champion over its predecessor on the groups that arrived after its promotion."""
    between = ""
    if since.get("gain_low") is not None and since.get("gain_high") is not None:
        between = f" ({_points(since['gain_low'])} to {_points(since['gain_high'])})"
    groups = since.get("groups")
    where = f"{groups} test group{'' if groups == 1 else 's'} that arrived after the promotion"
    return f"{_points(since.get('gain'))} points{between} over the predecessor, on {where}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}".replace("-0.0", "+0.0")
