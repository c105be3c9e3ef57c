"""Conformal p-values keep the false-alarm rate that they state, whatever the images of a group have in common."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from segmill.errors import InputError
from segmill.metrics.conformal import groups_needed, usual_scores

RESAMPLES = 200


def drawn(rng: np.random.Generator, groups: int, most: int) -> tuple[np.ndarray, list[str]]:
    """Return scores of groups of different sizes whose images are alike."""
    sizes = rng.integers(1, most + 1, groups)
    names = [f"g{group}" for group, size in enumerate(sizes) for _ in range(size)]
    common = np.repeat(rng.gamma(2.0, size=groups), sizes)
    return common + 0.2 * rng.normal(size=len(names)), names


def test_a_p_value_is_the_share_of_images_as_unusual() -> None:
    found = usual_scores([3.0, 1.0, 2.0], ["a", "b", "c"]).p_values([0.0, 1.0, 2.5, 3.0, 4.0, np.nan])
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.25, 0.25])


def test_a_group_counts_once_however_many_images_it_has() -> None:
    many = usual_scores([1.0, 5.0, 5.0, 5.0, 5.0], ["a", "b", "b", "b", "b"])
    assert many.p_values([5.0, 5.1]) == pytest.approx([2 / 3, 1 / 3])
    assert many.groups == 2


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_are_as_rare_as_stated(rate: float) -> None:
    """An image of a new group, exchangeable with the groups that calibrated, over resamples of both."""
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(RESAMPLES):
        scores, names = drawn(rng, 40, 6)
        new = names.index("g39")
        alarms += float(usual_scores(scores[:new], names[:new]).p_values(scores[new])) <= rate
    low, high = binom.ppf([0.005, 0.995], RESAMPLES, rate)
    assert low <= alarms <= high


def test_taking_images_for_groups_would_alarm_too_often() -> None:
    """What the weights are for: a large group that is usual hides how rare it is."""
    rng = np.random.default_rng(3)
    weighted = pooled = 0
    for _ in range(400):
        common = rng.normal(size=20)
        sizes = np.where(common < np.median(common), 50, 1)
        scores, names = np.repeat(common, sizes), [f"g{one}" for one in np.repeat(np.arange(20), sizes)]
        new = rng.normal()
        weighted += float(usual_scores(scores, names).p_values(new)) <= 0.1
        pooled += float(usual_scores(scores, [str(one) for one in range(len(names))]).p_values(new)) <= 0.1
    assert weighted <= binom.ppf(0.995, 400, 0.1) < pooled


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_a_threshold_is_where_the_p_value_crosses_the_rate(rate: float) -> None:
    scores, names = drawn(np.random.default_rng(1), 30, 3)
    found = usual_scores(scores, names)
    at = found.threshold(rate)
    assert found.p_values(at) > rate >= found.p_values(np.nextafter(at, np.inf))


def test_too_few_groups_for_a_rate_are_said() -> None:
    assert [groups_needed(rate) for rate in (0.05, 0.01, 0.5)] == [19, 99, 1]
    nineteen = usual_scores(np.arange(19.0), [str(one) for one in range(19)])
    assert nineteen.threshold(0.05) == 18.0
    with pytest.raises(InputError, match=r"19 calibration groups can't keep a false-alarm rate of 0.01.*takes 99"):
        nineteen.threshold(0.01)


@pytest.mark.parametrize(("scores", "groups"), [([], []), ([1.0], ["a", "b"]), ([1.0, np.inf], ["a", "b"])])
def test_scores_that_cannot_calibrate_are_refused(scores: list[float], groups: list[str]) -> None:
    with pytest.raises(InputError):
        usual_scores(scores, groups)
