"""The swap test against a slow direct implementation and scipy's, its promise, and where it stops counting."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from segmill.promotion import swap_test as module
from segmill.promotion.budget import LEAST_LEVEL
from segmill.promotion.paired import PairedOverlaps
from segmill.promotion.swap_test import draws, swap_test
from tests.promotion.drawn import drawn_counts, drawn_pair

NEVER = 1.0  # a level that no count of patterns exceeds


def swapped(pair: PairedOverlaps, signs: np.ndarray) -> PairedOverlaps:
    keep = signs[:, None] > 0
    return PairedOverlaps(
        pair.truth,
        np.where(keep, pair.new_both, pair.old_both),
        np.where(keep, pair.new_either, pair.old_either),
        np.where(keep, pair.old_both, pair.new_both),
        np.where(keep, pair.old_either, pair.new_either),
    )


def statistic(pair: PairedOverlaps) -> float:
    """Return gain / standard error, group by group and class by class: the delta method as written in textbooks."""
    classes = [k for k in range(pair.truth.shape[1]) if pair.truth[:, k].sum() > 0]
    influence = np.zeros(len(pair.truth))
    gain = 0.0
    for both, either, sign in ((pair.new_both, pair.new_either, 1), (pair.old_both, pair.old_either, -1)):
        for k in classes:
            intersection, union = both[:, k].sum(), either[:, k].sum()
            gain += sign * intersection / union / len(classes)
            for group in range(len(pair.truth)):
                part = both[group, k] / union - intersection * either[group, k] / union**2
                influence[group] += sign * part / len(classes)
    return float(gain / np.sqrt((influence**2).sum()))


def direct_p_value(pair: PairedOverlaps) -> float:
    seen = statistic(pair)
    patterns = [np.array(signs) for signs in itertools.product([1, -1], repeat=len(pair.truth))]
    return float(np.mean([statistic(swapped(pair, signs)) >= seen * (1 - 1e-12) for signs in patterns]))


@pytest.mark.parametrize("seed", range(8))
def test_all_patterns_agree_with_the_direct_implementation(seed: int) -> None:
    pair = drawn_pair(seed, 7, gain=0.02)
    found = swap_test(pair, level=NEVER, seed=0)
    expected = direct_p_value(pair)
    if pair.gain_in_miou().value > 0:
        assert (found.p_value, found.exact, found.at_least) == (pytest.approx(expected), True, False)
    else:
        assert found.at_least and expected >= found.p_value == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_all_patterns_agree_with_scipys_permutation_test(seed: int) -> None:
    """scipy swaps the entries of two samples pairwise; the entries here are numbers of tables."""
    pair = drawn_pair(seed, 9, gain=0.03)
    assert pair.gain_in_miou().value > 0
    count = len(pair.truth)

    def of_numbers(new: np.ndarray, _: np.ndarray) -> float:
        return statistic(swapped(pair, np.where(np.asarray(new) < count, 1, -1)))

    expected = stats.permutation_test(
        (np.arange(count), np.arange(count) + count),
        of_numbers,
        permutation_type="samples",
        alternative="greater",
        vectorized=False,
    )
    assert swap_test(pair, level=NEVER, seed=0).p_value == pytest.approx(expected.pvalue)


def test_draws_agree_with_all_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        pair = drawn_pair(seed, 14, gain=0.01)
        exact = swap_test(pair, level=NEVER, seed=0)
        with monkeypatch.context() as changed:
            changed.setattr(module, "EXACT_GROUPS", 5)
            drawn = swap_test(pair, level=1e-4, seed=seed)
            with_all = swap_test(pair, level=NEVER, seed=seed)
        assert not drawn.exact and drawn.patterns == 100_000 and with_all.patterns == 10_000
        if not exact.at_least:
            error = np.sqrt(exact.p_value / with_all.patterns)
            assert with_all.p_value == pytest.approx(exact.p_value, abs=4 * error + 1 / with_all.patterns)


@pytest.mark.parametrize("groups", [8, 30])
def test_equal_models_are_below_any_level_as_often_as_the_level_says(groups: int) -> None:
    """Exchangeable models on skewed groups: P(p <= a) <= a, and nearly a."""
    trials = 600
    names = [f"g{index}" for index in range(groups)]
    random = np.random.default_rng(11)
    pairs = [PairedOverlaps.of(*drawn_counts(random, names, classes=2, spread=0.4), names) for _ in range(trials)]
    p_values = np.array([swap_test(pair, level=NEVER, seed=seed).p_value for seed, pair in enumerate(pairs)])
    for level in (0.025, 0.1, 0.25):
        within = 3 * np.sqrt(level * (1 - level) / trials)
        assert level - within - 1 / 256 <= (p_values <= level).mean() <= level + within


def test_equally_good_models_that_vary_differently_stay_near_the_level() -> None:
    """They cannot be exchanged, so the test is valid nearly only: the statistic is studentised for them."""
    random, found = np.random.default_rng(5), []
    for seed in range(500):
        truth = np.full((12, 2), 1000.0)
        right = 800 + np.stack([random.normal(0, 60, (12, 2)), random.normal(0, 5, (12, 2))])
        either = 2 * truth - right
        found.append(swap_test(PairedOverlaps(truth, right[0], either[0], right[1], either[1]), level=NEVER, seed=seed))
    assert 0.01 <= np.mean([one.p_value <= 0.025 for one in found]) <= 0.045


def test_no_p_value_is_smaller_than_the_groups_allow() -> None:
    for groups in (2, 6, 11):
        pair = drawn_pair(0, groups, gain=0.2, spread=0.0)
        assert swap_test(pair, level=NEVER, seed=0).p_value == 2.0**-groups
    assert swap_test(drawn_pair(0, 25, gain=0.2, spread=0.0), level=1e-3, seed=0).p_value == 0.5 / 10_001


def test_identical_groups_are_the_strongest_witnesses_and_identical_models_none() -> None:
    one = drawn_pair(0, 1, gain=0.05)
    alike = PairedOverlaps(*(part.repeat(10, axis=0) for part in vars(one).values()))
    assert swap_test(alike, level=NEVER, seed=0).p_value == 2.0**-10
    same = replace(one, new_both=one.old_both, new_either=one.old_either)
    assert swap_test(same, level=NEVER, seed=0).p_value == 0.5


def test_counting_ends_where_the_answer_is_sure_and_the_answer_is_the_same() -> None:
    for seed in range(20):
        for groups in (15, 30):
            pair = drawn_pair(seed, groups, gain=0.004)
            whole, early = (swap_test(pair, level=level, seed=seed) for level in (NEVER, 0.01))
            assert early.p_value <= 0.01 or early.at_least
            if not whole.at_least:
                assert (early.p_value <= 0.01) == (whole.p_value <= 0.01)


def test_the_same_seed_draws_the_same_patterns() -> None:
    pair = drawn_pair(3, 30, gain=0.004)
    assert swap_test(pair, level=NEVER, seed=4) == swap_test(pair, level=NEVER, seed=4)
    assert swap_test(pair, level=NEVER, seed=4) != swap_test(pair, level=NEVER, seed=5)


def test_a_class_that_the_truth_does_not_hold_changes_nothing() -> None:
    pair = drawn_pair(1, 10, gain=0.02)
    stray = np.zeros((10, 1))
    stray[0] = 7
    extra = [0 * stray, 0 * stray, stray, 0 * stray, 0 * stray]
    more = PairedOverlaps(*map(np.hstack, zip(vars(pair).values(), extra, strict=True)))
    assert swap_test(more, level=NEVER, seed=0) == swap_test(pair, level=NEVER, seed=0)


@pytest.mark.parametrize(
    ("level", "count"),
    [(0.025, 10_000), (6.25e-4, 16_000), (3e-5, 333_334), (2.7e-6, 2**20), (3e-7, 6_666_667), (1e-9, 2**26)],
)
def test_as_many_draws_as_the_level_needs(level: float, count: int) -> None:
    assert draws(level) == count
    assert level < LEAST_LEVEL or 0.5 / (count + 1) <= level / 3
    assert 0.5 / (draws(LEAST_LEVEL) + 1) < LEAST_LEVEL
