"""Guards: standard errors against textbooks, margins shown or not, classes too rare, Holm's list, and times."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from segmill.promotion.guards import (
    class_conditions,
    latency_condition,
    loses_less,
    lost,
    size_condition,
    slice_conditions,
)
from segmill.promotion.paired import Estimate, PairedOverlaps
from tests.promotion.drawn import drawn_counts, drawn_pair


def outcome(value: float, error: float, groups: int = 30, loss: float = 0.05) -> tuple[str, bool]:
    found = loses_less("class a", "IoU", Estimate(value, error, groups), loss, 0.025)
    return found.outcome, found.shown_violated


def test_the_jackknife_of_a_mean_is_the_textbooks_standard_error() -> None:
    """With one class of equal size in all groups, IoU with unions held fixed is a mean over groups."""
    right = np.random.default_rng(0).normal(700, 50, (2, 15, 1))
    either = np.full((15, 1), 1000.0)
    pair = PairedOverlaps(either, right[0], either, right[1], either)
    found = pair.gain_in_miou()
    difference = ((right[0] - right[1]) / 1000).ravel()
    assert found == Estimate(pytest.approx(difference.mean()), pytest.approx(stats.sem(difference)), 15)
    assert found.p_above(0.0) == pytest.approx(stats.ttest_1samp(difference, 0, alternative="greater").pvalue)
    assert found.p_above(0.01) == pytest.approx(stats.ttest_1samp(difference, 0.01, alternative="greater").pvalue)
    interval = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert (found.low(0.025), found.high(0.025)) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_the_gain_is_that_of_the_summed_counts() -> None:
    names = [f"g{index // 3}" for index in range(30)]
    new, old = drawn_counts(np.random.default_rng(1), names, gain=0.02)
    pair = PairedOverlaps.of(new, old, names)
    iou = [np.diag(one) / (one.sum(0) + one.sum(1) - np.diag(one)) for one in (new.sum(0), old.sum(0))]
    assert [one.value for one in pair.gain_by_class()] == pytest.approx((iou[0] - iou[1]).tolist())
    assert pair.gain_in_miou().value == pytest.approx(iou[0].mean() - iou[1].mean())
    assert pair.gain_in_miou().groups == 10


def test_standard_errors_are_about_the_spread_over_test_sets() -> None:
    found = [drawn_pair(seed, 30).gain_in_miou() for seed in range(200)]
    assert np.mean([one.error for one in found]) == pytest.approx(np.std([one.value for one in found]), rel=0.2)


def test_a_class_in_two_groups_or_in_one_has_no_standard_error() -> None:
    pair = drawn_pair(0, 10, classes=3)
    parts = [part.copy() for part in vars(pair).values()]
    for part in parts:
        part[2:, 1] = 0
        part[1:, 2] = 0
    two, one = PairedOverlaps(*parts).gain_by_class()[1:]
    assert (two.groups, one.groups) == (2, 1)
    assert np.isinf([two.error, one.error]).all() and two.p_above(0.0) == 1.0
    assert {each.outcome for each in class_conditions(PairedOverlaps(*parts), "abc", loss=0.5, level=0.025)[1:]} == {
        "cannot be tested"
    }


def test_a_margin_is_kept_shown_lost_or_not_shown() -> None:
    assert outcome(0.0, 0.01) == ("met", False)
    assert outcome(-0.025, 0.01) == ("met", False)
    assert outcome(-0.035, 0.01) == ("not met", False)
    assert outcome(-0.08, 0.01) == ("not met", True)


def test_a_class_too_rare_for_its_margin_vetoes_only_if_it_is_shown_worse() -> None:
    assert outcome(0.0, 0.03) == ("cannot be tested", False)
    assert outcome(-0.05, 0.03) == ("cannot be tested", False)
    assert outcome(-0.065, 0.03) == ("not met", True)
    assert outcome(0.08, 0.05) == ("met", False), "shown all the same"
    assert outcome(-0.9, float("inf"), 2) == ("cannot be tested", False)


def test_an_equal_model_misses_a_margin_that_can_be_tested_as_seldom_as_the_level_says() -> None:
    random = np.random.default_rng(2)
    refused = []
    for _ in range(2000):
        values = random.normal(0, 1, 12)
        estimate = Estimate(float(values.mean()), float(stats.sem(values)), 12)
        loss = 2.01 * estimate.reach(0.025)  # as small as can just be tested
        refused.append(loses_less("a", "IoU", estimate, loss, 0.025).outcome != "met")
    assert np.mean(refused) <= 0.035


def test_holms_list_names_no_class_of_equal_models_more_often_than_the_level() -> None:
    names = list("abcdef")
    wrong = [bool(lost(drawn_pair(seed, 20, classes=6, spread=0.3), names, level=0.05)) for seed in range(300)]
    assert np.mean(wrong) <= 0.09


def test_holm_by_hand() -> None:
    """Three classes with p-values of 0.004, 0.02 and 0.03 at 0.05: below 0.05/3, 0.05/2 and 0.05/1."""
    wanted = [0.004, 0.02, 0.03]

    class Given(PairedOverlaps):
        def gain_by_class(self) -> list[Estimate]:
            return [Estimate(-float(stats.t.isf(p, 9)) * 0.01, 0.01, 10) for p in wanted]

    given = Given(*[np.ones((10, 3))] * 5)
    assert lost(given, "abc", level=0.05) == ["a", "b", "c"]
    wanted[1] = 0.026
    assert lost(given, "abc", level=0.05) == ["a"], "it ends at the first that is not shown"


def test_slices_are_judged_by_their_own_images() -> None:
    names = [f"g{index // 2}" for index in range(40)]
    new, old = drawn_counts(np.random.default_rng(4), names, gain=0.1, spread=0.02)
    night = ["night" if index < 20 else "day" for index in range(40)]
    new[:20], old[:20] = old[:20].copy(), new[:20].copy()
    found = {
        one.name: one
        for one in slice_conditions((new, old), names, {"light": night}, losses={"light": 0.03}, level=0.025)
    }
    assert found["slice light=day"].outcome == "met" and found["slice light=day"].figures["groups"] == 10
    assert found["slice light=night"].shown_violated and found["slice light=night"].figures["gain"] < -0.1


def test_latency_is_a_paired_test_of_the_ratio() -> None:
    random = np.random.default_rng(0)
    base = random.lognormal(4, 0.5, 40)  # images of many sizes
    times = (base * 1.1 * random.lognormal(0, 0.02, 40), base)
    found = latency_condition(times, ratio=1.2, level=0.025)
    assert found.outcome == "met" and found.figures["ratio"] == pytest.approx(1.1, abs=0.01)
    assert latency_condition(times, ratio=1.05, level=0.025).shown_violated
    close = latency_condition(times, ratio=1.103, level=0.025)
    assert (close.outcome, close.shown_violated) == ("not met", False)
    assert latency_condition((base[:2], base[:2]), ratio=2, level=0.025).outcome == "not met", "two say nothing"


def test_size_is_compared_as_it_is() -> None:
    assert size_condition((150, 100), ratio=1.5).outcome == "met"
    assert size_condition((151, 100), ratio=1.5).shown_violated
