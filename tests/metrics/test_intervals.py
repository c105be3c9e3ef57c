"""The paired interval of a gain and that of a score: their centre, their ends, and whether they keep their promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from segmill.errors import InputError
from segmill.metrics import intervals
from segmill.metrics.intervals import gain_interval, iou_intervals, score_intervals
from segmill.metrics.scores import accuracy, iou, mdice, miou


def table(right_0: int, right_1: int, size: int = 100) -> np.ndarray:
    """Two classes of ``size`` pixels each, of which so many are right."""
    return np.array([[right_0, size - right_0], [size - right_1, right_1]])


def test_one_table_by_hand() -> None:
    new, old = np.array([table(80, 80)]), np.array([table(60, 80)])
    gain = gain_interval(new, old, ["g"], confidence=0.95, seed=0)
    # new: 80/120 twice; old: 60/120 and 80/140.
    assert gain.estimate == pytest.approx(80 / 120 - (60 / 120 + 80 / 140) / 2)
    assert gain.groups == 1 and gain.classes == (0, 1)


def test_the_estimate_is_the_difference_of_the_two_mious() -> None:
    random = np.random.default_rng(0)
    new = np.stack([table(*random.integers(60, 95, 2)) for _ in range(12)])
    old = np.stack([table(*random.integers(50, 90, 2)) for _ in range(12)])
    gain = gain_interval(new, old, [f"g{i // 3}" for i in range(12)], confidence=0.95, seed=0)
    assert gain.estimate == pytest.approx(miou(new) - miou(old))
    assert gain.low < gain.estimate < gain.high
    assert gain.groups == 4


def test_swapping_the_models_mirrors_the_interval() -> None:
    random = np.random.default_rng(3)
    new = np.stack([table(*random.integers(60, 95, 2)) for _ in range(10)])
    old = np.stack([table(*random.integers(60, 95, 2)) for _ in range(10)])
    groups = [f"g{i}" for i in range(10)]
    forth = gain_interval(new, old, groups, confidence=0.9, seed=5)
    back = gain_interval(old, new, groups, confidence=0.9, seed=5)
    np.testing.assert_allclose([back.low, back.high], [-forth.high, -forth.low], atol=1e-12)


def test_images_of_one_group_are_not_counted_as_witnesses() -> None:
    """Ten copies of each image say no more than one; ten groups of their own would."""
    random = np.random.default_rng(1)
    new = np.stack([table(*random.integers(60, 95, 2)) for _ in range(8)])
    old = np.stack([table(*random.integers(60, 90, 2)) for _ in range(8)])
    names = [f"g{i}" for i in range(8)]
    once = gain_interval(new, old, names, confidence=0.95, seed=0)
    copies = gain_interval(new.repeat(10, 0), old.repeat(10, 0), np.repeat(names, 10).tolist(), confidence=0.95, seed=0)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    pretended = gain_interval(
        new.repeat(10, 0), old.repeat(10, 0), [f"g{i}" for i in range(80)], confidence=0.95, seed=0
    )
    assert pretended.high - pretended.low < 0.5 * (once.high - once.low)


def test_the_same_model_gains_exactly_nothing() -> None:
    counts = np.stack([table(70, 60), table(90, 80)])
    gain = gain_interval(counts, counts, ["a", "b"], confidence=0.95, seed=0)
    assert (gain.estimate, gain.low, gain.high) == (0, 0, 0)


def test_a_class_that_only_one_model_dreams_of_does_not_decide() -> None:
    """One stray pixel of an absent class would cost a third of a three-class mIoU."""
    old = np.array([[[90, 10, 0], [10, 90, 0], [0, 0, 0]]])
    new = np.array([[[91, 8, 1], [10, 90, 0], [0, 0, 0]]])
    gain = gain_interval(new, old, ["g"], confidence=0.95, seed=0)
    assert gain.classes == (0, 1)
    assert gain.estimate == pytest.approx((91 / 110 - 90 / 110 + 90 / 108 - 90 / 110) / 2)


def test_nothing_to_compare_is_nan() -> None:
    nothing = np.zeros((2, 2, 2), np.int64)
    gain = gain_interval(nothing, nothing, ["a", "b"], confidence=0.95, seed=0)
    assert np.isnan([gain.estimate, gain.low, gain.high]).all() and gain.classes == ()


# Student's table, as statistics books print it.
@pytest.mark.parametrize(
    ("freedom", "probability", "expected"),
    [(1, 0.975, 12.706), (2, 0.95, 2.920), (4, 0.975, 2.776), (9, 0.995, 3.250), (30, 0.975, 2.042)],
)
def test_student_t_agrees_with_the_printed_table(freedom: int, probability: float, expected: float) -> None:
    assert intervals.student_t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("count", [3, 10])
def test_false_alarms_stay_near_the_promise(count: int) -> None:
    """Two equal models, groups that each favour one by chance: 5 % should look better or worse."""
    random = np.random.default_rng(7)
    alarms = 0
    for trial in range(300):
        favour = random.normal(0, 5, count).round().astype(int)
        new = np.stack([table(80 + f, 80 + f) for f in favour])
        old = np.stack([table(80, 80) for _ in favour])
        gain = gain_interval(new, old, [f"g{i}" for i in range(count)], confidence=0.95, seed=trial, resamples=400)
        alarms += gain.low > 0 or gain.high < 0
    assert 0.01 < alarms / 300 < 0.09


def test_one_group_could_mean_anything() -> None:
    gain = gain_interval(np.array([table(90, 90)]), np.array([table(50, 50)]), ["g"], confidence=0.95, seed=0)
    assert (gain.low, gain.high) == (-1, 1)


def test_many_even_groups_give_the_paired_t_interval() -> None:
    """Small changes of groups of one size move mIoU linearly: there the paired t-test has the answer."""
    favour = np.random.default_rng(2).normal(2, 4, 40).round().astype(int)
    new = np.stack([table(8000 + f, 8000 + f, 10_000) for f in favour])
    old = np.stack([table(8000, 8000, 10_000) for _ in favour])
    gain = gain_interval(new, old, [f"g{i}" for i in range(40)], confidence=0.95, seed=0)
    # With r right pixels of each class's n, IoU is r / (2n - r); its slope is 2n / (2n - r)^2.
    exact = stats.ttest_1samp(favour * 20_000 / 12_000**2, 0).confidence_interval(0.95)
    assert (gain.low, gain.high) == pytest.approx(tuple(exact), abs=2e-5)


def test_refuses_counts_that_are_not_a_pair() -> None:
    one, other = np.array([table(80, 80)]), np.array([table(80, 80, size=90)])
    with pytest.raises(InputError, match="on different truths"):
        gain_interval(one, other, ["g"], confidence=0.95, seed=0)
    with pytest.raises(InputError, match="2 groups came for 1 images"):
        gain_interval(one, one, ["g", "h"], confidence=0.95, seed=0)
    with pytest.raises(InputError, match="same images and classes"):
        gain_interval(one, np.zeros((1, 3, 3)), ["g"], confidence=0.95, seed=0)
    with pytest.raises(InputError, match=r"confidence is 95; allowed is between 0\.5 and 1"):
        gain_interval(one, one, ["g"], confidence=95, seed=0)


def test_the_scores_of_one_model_are_those_of_the_set_and_are_in_their_intervals() -> None:
    random = np.random.default_rng(2)
    counts = np.stack([table(*random.integers(50, 95, 2)) for _ in range(12)])
    found = score_intervals(counts, [f"g{i // 3}" for i in range(12)], confidence=0.95, seed=0)
    for name, score in (("miou", miou), ("mdice", mdice), ("accuracy", accuracy)):
        assert found[name].estimate == pytest.approx(score(counts)) and found[name].groups == 4
        assert 0 <= found[name].low < found[name].estimate < found[name].high <= 1


def test_one_group_leaves_a_score_open_and_no_pixel_makes_it_unknown() -> None:
    alone = score_intervals(np.array([table(80, 80)]), ["g"], confidence=0.95, seed=0)["miou"]
    assert (alone.low, alone.high, alone.groups) == (0.0, 1.0, 1)
    nothing = score_intervals(np.zeros((3, 2, 2), np.int64), ["a", "b", "c"], confidence=0.95, seed=0)
    assert all(np.isnan([one.estimate, one.low, one.high]).all() for one in nothing.values())


def test_the_iou_of_each_class_has_an_interval_and_a_class_without_pixels_has_none() -> None:
    random = np.random.default_rng(5)
    counts = np.zeros((12, 3, 3), np.int64)
    counts[:, :2, :2] = np.stack([table(*random.integers(50, 95, 2)) for _ in range(12)])
    groups = [f"g{i // 3}" for i in range(12)]
    found = iou_intervals(counts, groups, confidence=0.95, seed=0)
    assert [one.estimate for one in found[:2]] == pytest.approx(iou(counts)[:2])
    assert all(0 <= one.low < one.estimate < one.high <= 1 and one.groups == 4 for one in found[:2])
    assert np.isnan([found[2].estimate, found[2].low, found[2].high]).all()
    wider = iou_intervals(counts, groups, confidence=0.99, seed=0)
    assert all(one.low < other.low and other.high < one.high for one, other in zip(wider[:2], found, strict=False))
    (alone, _) = iou_intervals(np.array([table(80, 80)]), ["g"], confidence=0.95, seed=0)
    assert (alone.low, alone.high) == (0.0, 1.0)


def test_the_interval_of_a_score_holds_the_true_one_as_often_as_it_says() -> None:
    """Eight groups of a population whose mIoU is known from ten thousand."""
    random = np.random.default_rng(4)
    population = np.stack([table(*np.clip(random.normal(75, 10, 2), 0, 100).astype(int)) for _ in range(10_000)])
    true, held = miou(population), 0
    for draw in range(300):
        seen = population[random.integers(len(population), size=8)]
        found = score_intervals(seen, list("abcdefgh"), confidence=0.95, seed=draw, resamples=400)["miou"]
        held += found.low <= true <= found.high
    assert 0.92 <= held / 300 <= 0.985
