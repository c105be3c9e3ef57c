"""The budget of a test set: the levels of all reachable judgements sum to alpha at most, and which set is judged."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import pytest

from segmill.promotion.budget import GateBudget, Judgement, budget, group_id, groups_for_promotions, groups_needed

MANY = [f"g{index}" for index in range(60)]


def judged(
    groups: Sequence[str] = MANY, *, passed: bool = False, floor: bool = False, recipe: str = "r", sealed: bool = False
) -> Judgement:
    return Judgement(frozenset(map(group_id, groups)), passed, floor, recipe, sealed)


def today(
    history: Sequence[Judgement], groups: Sequence[str] = MANY, *, recipe: str = "r", judgements: int = 20
) -> GateBudget:
    return budget(history, groups, alpha=0.05, judgements=judgements, recipe=recipe)


def spent(
    history: list[Judgement], floor_next: Callable[[Sequence[bool]], bool], judgements: int, set_number: int
) -> float:
    """Sum the levels of all judgements against a champion that the histories from here on can reach on the set."""
    left = budget(history, GROUPS[set_number], alpha=0.05, judgements=judgements, recipe="r")
    assert left.set_number == set_number
    if not left.left:
        assert left.level == 0
        return 0.0
    floor = floor_next([one.passed for one in history])
    after = [
        spent([*history, judged(left.groups, passed=passed, floor=floor)], floor_next, judgements, set_number)
        for passed in (False, True)
    ]
    return (0.0 if floor else left.level) + sum(after)


def whim(seed: int, verdicts: Sequence[bool]) -> bool:
    return hashlib.sha256(f"{seed}{list(verdicts)}".encode()).digest()[0] < 90


# The second set's own groups are as many as any level here asks for; the third's too.
GROUPS = {1: MANY, 2: [*MANY, *(f"h{index}" for index in range(60))]}
WHEN_IS_THE_FLOOR_JUDGED: dict[str, Callable[[Sequence[bool]], bool]] = {
    "never": lambda verdicts: False,
    "until a version passes": lambda verdicts: not any(verdicts),
    "until somebody promotes without a PASS": lambda verdicts: len(verdicts) < 3 and not any(verdicts),
    "again after each withdrawal": lambda verdicts: len(verdicts) % 3 == 0,
    "until two pass": lambda verdicts: sum(verdicts) < 2,
    **{
        f"by whim {seed}": lambda verdicts, seed=seed: (
            hashlib.sha256(f"{seed}{list(verdicts)}".encode()).digest()[0] < 90
        )
        for seed in range(6)
    },
}


@pytest.mark.parametrize("floors", WHEN_IS_THE_FLOOR_JUDGED)
@pytest.mark.parametrize("judgements", [1, 2, 5, 9])
def test_the_levels_of_all_reachable_judgements_sum_to_the_sets_alpha_at_most(floors: str, judgements: int) -> None:
    total = spent([], WHEN_IS_THE_FLOOR_JUDGED[floors], judgements, 1)
    assert total <= 0.05 / 2 * (1 + 1e-9)
    if floors == "never":
        assert total == pytest.approx(0.05 / 2 * (1 - 2.0**-judgements)), "and no more than 2^-T of it is left over"


@pytest.mark.parametrize("floors", WHEN_IS_THE_FLOOR_JUDGED)
def test_the_second_set_has_its_own_sum_whatever_happened_on_the_first(floors: str) -> None:
    for first in ([False] * 5, [True, False, True, False, False]):
        history = [judged(passed=passed) for passed in first]
        total = spent(history, lambda verdicts: WHEN_IS_THE_FLOOR_JUDGED[floors](verdicts[5:]), 5, 2)
        assert total <= 0.05 / 6 * (1 + 1e-9)


def test_the_sets_of_a_model_share_alpha() -> None:
    assert sum(1 / (number * (number + 1)) for number in range(1, 10_000)) == pytest.approx(1, abs=1e-3)


def test_the_levels_at_twenty_judgements() -> None:
    """By hand: alpha / 2 for the first set, 1/2 of it for the first promotion over 20 histories, 1/4 over 190, ..."""
    histories = [[], [judged(passed=True)], [judged(passed=True)] * 2]
    levels = [today(one).level for one in histories]
    assert levels == pytest.approx([0.025 / 2 / 20, 0.025 / 4 / 190, 0.025 / 8 / 1140])
    assert [groups_needed(level) for level in levels] == [11, 15, 19]
    assert groups_for_promotions(0.05, 20) == (11, 15, 19)
    assert groups_for_promotions(0.10, 20) == (10, 14, 18), "alpha of 5 % on the set itself"
    assert groups_for_promotions(0.05, 1) == (7,), "one judgement allows one promotion"
    assert len(groups_for_promotions(0.05, 20, count=20)) == 6, "the seventh's level is below what draws can show"
    assert "raise promotion.alpha" in budget([], ["a"], alpha=1e-7, judgements=20, recipe="").renewal()


def test_after_the_first_champion_nine_tenths_are_left_and_one_judgement_fewer() -> None:
    first = [judged(floor=True, passed=True)]
    assert today(first).level == pytest.approx(0.9 * 0.025 / 2 / 19)
    assert (today(first).left, today(first).used, today(first).passes, today(first).floor_judgements) == (19, 1, 0, 1)
    third = [judged(floor=True), judged(floor=True), judged(floor=True, passed=True)]
    assert today(third).level == pytest.approx(0.1 / 6 * 0.025 / 2 / 17)
    assert sum([0.9, *(0.1 / (s * (s - 1)) for s in range(2, 100_000))]) == pytest.approx(1, abs=1e-4)


def test_a_verdict_without_a_pass_costs_a_judgement_and_no_level() -> None:
    assert today([judged()] * 19).level == today([]).level
    assert today([judged()] * 19).left == 1
    assert (today([judged()] * 20).left, today([judged()] * 20).level) == (0, 0.0)
    assert not today([judged()] * 20).decidable


def test_a_set_that_grows_or_is_relabelled_continues_its_budget() -> None:
    history = [judged(MANY[:30]), judged(MANY[:40], passed=True)]
    found = today(history, MANY[10:])  # ten groups are gone, twenty came
    assert (found.set_number, found.used, found.passes, found.groups) == (1, 2, 1, tuple(sorted(MANY[10:])))
    assert found.fresh == 20


def test_an_exhausted_set_continues_as_the_next_one_with_the_groups_that_were_never_judged() -> None:
    history = [judged(MANY[:20])] * 20
    few = today(history, MANY[:31])  # 11 never judged: the second set needs 2^-n <= alpha / 6 / 2 / 20, 13 of them
    assert (few.set_number, few.left, few.level, few.fresh) == (1, 0, 0.0, 11)
    assert few.renewal() == (
        "A new test set with 20 judgements begins with 13 test groups that were never judged; 11 of them are there, "
        "2 are missing: add them with `segmill data add`."
    )
    enough = today(history, MANY[:33])
    assert (enough.set_number, enough.groups, enough.used, enough.left) == (2, tuple(sorted(MANY[20:33])), 0, 20)
    assert enough.level == pytest.approx(0.05 / 6 / 2 / 20)
    assert enough.changes_by_people == 0, "of an earlier set"


def test_a_set_too_small_for_its_level_gives_way_to_fresh_groups_that_can_decide() -> None:
    history = [judged(MANY[:12], passed=True)]  # the second promotion needs 15 groups
    assert today(history, MANY[:12]).set_number == 1 and not today(history, MANY[:12]).decidable
    assert today(history, MANY[:16]).set_number == 1, "it grew to 16: it can decide and continues"
    small = [judged(MANY[:12], passed=True)] * 3
    assert today(small, MANY[:24]).set_number == 1, "23 groups would do for the fourth promotion"
    assert today([judged(MANY[:2], passed=True)] * 4, MANY[:16]).set_number == 2


def test_the_second_set_holds_no_group_of_the_first() -> None:
    history = [judged(MANY[:20])] * 20 + [judged(MANY[20:40])]
    found = today(history, MANY)
    assert (found.set_number, found.used, found.groups) == (2, 1, tuple(sorted(MANY[20:])))


def test_a_judgement_that_read_groups_of_two_sets_counts_on_both() -> None:
    history = [judged(MANY[:20])] * 20 + [judged(MANY[20:40])] + [judged(MANY, passed=True)]
    found = today(history, MANY)
    assert (found.set_number, found.used, found.passes) == (2, 2, 1)


def test_changes_that_people_made_after_an_open_verdict_are_counted() -> None:
    recipes = [judged(recipe=recipe) for recipe in "aabba"]
    assert today(recipes, recipe="a").changes_by_people == 2
    assert today(recipes, recipe="c").changes_by_people == 3
    sealed = [judged(recipe=recipe, sealed=True) for recipe in "abcd"]
    assert today(sealed, recipe="e").changes_by_people == 0, "nothing was shown"
    assert today([*sealed, judged(recipe="e")], recipe="f").changes_by_people == 1
    assert today([judged(recipe="a"), *sealed], recipe="d").changes_by_people == 3, "the first figures were shown"


@pytest.mark.parametrize(("level", "groups"), [(1, 0), (0.5, 1), (0.49, 2), (0.05, 5), (6.25e-4, 11), (2.0**-40, 40)])
def test_no_sign_flip_of_fewer_groups_reaches_the_level(level: float, groups: int) -> None:
    assert groups_needed(level) == groups
    assert 2.0**-groups <= level and (groups == 0 or 2.0 ** -(groups - 1) > level)


def test_a_level_that_no_test_can_show_takes_new_groups() -> None:
    history = [judged(MANY[:40], passed=True)] * 7
    assert not today(history, MANY[:40]).decidable
    assert today(history, MANY).set_number == 2


def test_levels_fall_with_every_pass_by_the_number_of_histories() -> None:
    for passes in range(5):
        found = today([judged(passed=True)] * passes, judgements=7)
        assert found.level == pytest.approx(0.025 * 2.0 ** -(passes + 1) / math.comb(7, passes + 1))
