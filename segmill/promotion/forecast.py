"""What the gate can decide with the test groups of a set, said before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from segmill.metrics.intervals import LEAST_GROUPS
from segmill.promotion.budget import groups_for_promotions, groups_needed
from segmill.promotion_params import PromotionParams

NAMED = 3  # promotions whose groups are named in the sentence
ADD = "add groups with `segmill data add`"


@dataclass(frozen=True)
class GateForecast:
    """What a new test set of so many groups can decide.

    Attributes:
        rule: promotion.rule.
        groups: of test that the gate judges on.
        sealed: whether they are the sealed groups of test.
        first: whether the first version, which has no champion to beat, can be judged by promotion.floor_miou.
        promotions: over a champion, how many it can decide during its life; None for rule plain, which counts none.
        needed: groups that the first, second and third of them take; for rule plain what any takes.
        says: one or two sentences, each a line.
    """

    rule: str
    groups: int
    sealed: bool
    first: bool
    promotions: int | None
    needed: tuple[int, ...]
    says: tuple[str, ...]


def forecast(test_groups: int, sealed_groups: int, policy: PromotionParams) -> GateForecast:
    """Return what the gate will be able to decide on a test set that no version was judged on yet.

    Where groups are sealed, the gate judges on these alone. Of a set's judgements one is counted for the first version,
    which no champion is there to be compared with.
    """
    groups = sealed_groups or test_groups
    what = f"{groups} {'sealed' if sealed_groups else 'test'} group{'' if groups == 1 else 's'}"
    first = groups >= LEAST_GROUPS or policy.floor_miou == 0
    if policy.rule == "plain":
        promotions, needed, says = None, *_plain(groups, what, policy)
    else:
        promotions, needed, says = _lifetime(groups, what, policy)
    if not first:
        floor = f"promotion.floor_miou takes {LEAST_GROUPS} groups, and {what} can't show of the first version that it "
        says = (f"{floor}reaches it; {says[0]}", *says[1:])
    return GateForecast(policy.rule, groups, bool(sealed_groups), first, promotions, needed, says)


def _plain(groups: int, what: str, policy: PromotionParams) -> tuple[tuple[int, ...], tuple[str, ...]]:
    level = _plain_level(policy)
    needed = groups_needed(level)
    alone = f"promotion.rule plain judges each night alone, at level {level:.3g}, and promises nothing over many nights"
    if groups < needed:
        return (needed,), (f"the gate can't compare two versions on {what}: that takes {needed}; {ADD}", alone)
    return (needed,), (f"the gate can compare two versions on {what}; that takes {needed}", alone)


def _lifetime(groups: int, what: str, policy: PromotionParams) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    every = groups_for_promotions(policy.alpha, policy.judgements, floor_judgements=1, count=policy.judgements)
    rule = f"promotion.rule lifetime, judgements {policy.judgements}, alpha {policy.alpha:g}"
    if not every:
        why = "the first version uses the only one" if policy.judgements == 1 else "no test can show so small a p-value"
        more = "raise judgements" if policy.judgements == 1 else "raise alpha or lower judgements"
        return 0, (), (f"the gate can never promote a version over a champion: {why} ({rule}); {more}",)
    promotions = next((number for number, needed in enumerate(every) if needed > groups), len(every))
    ordinals = zip(("first", "second", "third"), every[:NAMED], strict=False)
    takes = ", ".join(f"the {ordinal} takes {needed}" for ordinal, needed in ordinals)
    says: tuple[str, ...]
    if promotions == 0:
        plain = f"plain, which judges each night alone, from {groups_needed(_plain_level(policy))} groups on"
        says = (
            f"the gate can't promote a version over a champion on {what}: {takes} ({rule})",
            f"{ADD}, or set promotion.rule: {plain}, and promises nothing over many nights",
        )
    else:
        times = "once" if promotions == 1 else f"{promotions} times"
        says = (
            f"the gate can promote a version over a champion {times} on {what}: {takes} ({rule})",
            f"for more promotions, or when its judgements are used, {ADD}",
        )
    return promotions, every[:NAMED], says


def _plain_level(policy: PromotionParams) -> float:
    return (1 - policy.confidence) / 2
