"""What the gate can decide with so many test groups, against the levels of the budget."""

from __future__ import annotations

from math import comb
from typing import Any

import pytest

from segmill.promotion.budget import Judgement, budget, group_id
from segmill.promotion.forecast import GateForecast, forecast
from segmill.promotion_params import PromotionParams


def said(groups: int, sealed: int = 0, **policy: Any) -> GateForecast:
    return forecast(groups, sealed, PromotionParams(**policy))


def test_the_groups_are_those_of_the_levels_by_hand() -> None:
    """One judgement of 20 goes to the first version; after k promotions the level is as below."""
    found = said(6)
    for passes, needed in enumerate(found.needed):
        level = 0.05 / 2 * 0.9 * 2.0 ** -(passes + 1) / comb(19, passes + 1)
        assert 2.0**-needed <= level < 2.0 ** -(needed - 1)
    assert (found.needed, found.promotions) == ((11, 15, 19), 0)
    assert found.says[0] == (
        "the gate can't promote a version over a champion on 6 test groups: the first takes 11, the second takes 15, "
        "the third takes 19 (promotion.rule lifetime, judgements 20, alpha 0.05)"
    )
    assert found.says[1] == (
        "add groups with `segmill data add`, or set promotion.rule: plain, which judges each night alone, from 6 "
        "groups on, and promises nothing over many nights"
    )


@pytest.mark.parametrize(("groups", "promotions"), [(10, 0), (11, 1), (14, 1), (15, 2), (18, 2), (19, 3), (40, 6)])
def test_so_many_promotions_are_what_the_budget_decides(groups: int, promotions: int) -> None:
    found = said(groups)
    assert found.promotions == promotions
    names = [f"g{number}" for number in range(groups)]
    ids = frozenset(map(group_id, names))
    history = [Judgement(ids, passed=True, floor=True, recipe="r", sealed=False)]
    for number in range(promotions):
        left = budget(history, names, alpha=0.05, judgements=20, recipe="r")
        assert left.decidable and left.set_number == 1, number
        history.append(Judgement(ids, passed=True, floor=False, recipe="r", sealed=False))
    assert not budget(history, names, alpha=0.05, judgements=20, recipe="r").decidable
    times = {0: "can't promote a version over a champion on", 1: "a champion once on"}
    assert times.get(promotions, f"a champion {promotions} times on") in found.says[0]


def test_sealed_groups_are_what_the_gate_judges_on() -> None:
    found = said(20, sealed=4)
    assert (found.groups, found.sealed, found.promotions) == (4, True, 0) and "4 sealed groups" in found.says[0]
    assert not said(20).sealed


def test_plain_promises_nothing_over_many_nights() -> None:
    few, enough = said(5, rule="plain"), said(6, rule="plain")
    assert few.needed == enough.needed == (6,)  # 2^-6 <= 0.025 < 2^-5
    assert few.promotions is None and few.says[0].startswith("the gate can't compare two versions on 5 test groups")
    assert enough.says[0].startswith("the gate can compare two versions on 6 test groups")
    assert "promises nothing over many nights" in few.says[1] and few.says[1] == enough.says[1]


@pytest.mark.parametrize("rule", ["lifetime", "plain"])
def test_the_first_version_takes_as_many_groups_as_an_interval(rule: str) -> None:
    few, enough = said(2, rule=rule), said(3, rule=rule)
    assert (few.first, enough.first, said(2, floor_miou=0, rule=rule).first) == (False, True, True)
    assert few.says[0].startswith("promotion.floor_miou takes 3 groups, and 2 test groups can't show of the first ")
    assert enough.says[0].startswith("the gate can't ")


def test_settings_under_which_nothing_is_ever_promoted() -> None:
    one, strict = said(50, judgements=1), said(50, alpha=1e-12)
    assert one.promotions == strict.promotions == 0
    assert "the first version uses the only one" in one.says[0] and one.says[0].endswith("raise judgements")
    assert "no test can show so small a p-value" in strict.says[0]
