"""What moved: false alarms where nothing changed, what a brighter stream looks like, and since when it is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from segmill.monitoring.comparison import COLORS_NAME, LEAST_EFFECT, Movement, compare, reference_of
from segmill.monitoring.statistics import COLORS
from segmill.monitoring.sums import Sums, ValueSums
from segmill.monitoring.usual import TRAINING, UsualImages, usual_of, with_held_out
from segmill.monitoring.windows import Window

HOUR, ALIKE = 3600, 4  # so many images that follow one another are of one scene
Rng = np.random.Generator
Values = dict[str, NDArray[np.float64]]
SHARES_N = np.linspace(0.2, 3, COLORS)


def nothing(number: int, values: Values) -> Values:
    return values


def sums(rng: Rng, images: int, change: Callable[[Values], Values] = lambda values: values,
         shares_N: NDArray[np.float64] = SHARES_N) -> Sums:  # fmt: skip
    """Statistics as scenes have them: images of one scene are alike, and statistics depend on one another."""
    scene = rng.standard_normal(-(-images // ALIKE)).repeat(ALIKE)[:images]
    noise = rng.standard_normal((4, images))
    bright, road = 0.45 + 0.08 * scene + 0.05 * noise[0], np.clip(0.4 + 0.1 * scene + 0.05 * noise[1], 0, 1)
    values = {
        "brightness": bright, "contrast": 0.2 + 0.1 * (bright - 0.45) + 0.02 * noise[2],
        "sharpness": 2.4 + 0.2 * noise[3], "size": np.full(images, 18.0), "confidence": rng.beta(20, 2, images),
        "area.road": road, "area.sky": 1 - road,
    }  # fmt: skip
    colors = rng.dirichlet(shares_N, images)
    found = {name: ValueSums.of(name, some) for name, some in change(values).items()}
    return Sums(images, found, colors.sum(axis=0), np.square(colors).sum(axis=0))


def stream(
    rng: Rng, count: int, images: int = 20, change: Callable[[int, Values], Values] = nothing,
    shares_TN: Mapping[int, NDArray[np.float64]] | None = None,
) -> list[Window]:  # fmt: skip
    return [
        Window("street", "3", number * HOUR, HOUR,
               sums(rng, images, lambda values, number=number: change(number, values),
                    (shares_TN or {}).get(number, SHARES_N)))
        for number in range(count)
    ]  # fmt: skip


def training(rng: Rng, groups: int = 60) -> UsualImages:
    """A reference whose groups are a scene each."""
    return usual_of([sums(rng, ALIKE) for _ in range(groups)], TRAINING)


def moved(windows: list[Window], usual: UsualImages) -> list[Movement]:
    return [one for one in compare(windows, usual) if one.moved]


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(16)


@pytest.mark.parametrize("first_windows", [False, True])
def test_where_nothing_changed_something_is_named_as_seldom_as_was_said(first_windows: bool) -> None:
    level, tries, wrong = 0.05, 60, 0
    for seed in range(tries):
        rng = np.random.default_rng([seed, first_windows])
        windows = stream(rng, 24)
        usual, windows = reference_of(windows) if first_windows else (training(rng), windows)
        wrong += min(one.p_value for one in compare(windows, usual)) < level
    assert wrong <= stats.binom.ppf(0.999, tries, level), wrong


@pytest.mark.parametrize("by", [0.15, -0.15])
def test_a_stream_that_becomes_brighter_or_darker_is_named_with_the_hour_since(by: float) -> None:
    def change(number: int, values: Values) -> Values:
        return values | {"brightness": values["brightness"] + by * (number >= 12)}

    tries, named = 20, []
    for seed in range(tries):
        rng = np.random.default_rng([seed, 7])
        named += [one for one in moved(stream(rng, 24, change=change), training(rng)) if one.name == "brightness"]
    assert len(named) >= tries - 1
    assert np.mean([abs(one.since / HOUR - 12) for one in named]) <= 1
    for one in named:
        assert one.words.endswith("higher" if by > 0 else "lower") and np.sign(one.effect) == np.sign(by)
        assert abs(one.now - one.usual - by) < 0.08 and one.outside > 0.05 and abs(one.effect) > LEAST_EFFECT


def test_a_wider_spread_and_other_colours_are_named(rng: Rng) -> None:
    def change(number: int, values: Values) -> Values:
        wide = 2.4 + 3 * (values["sharpness"] - 2.4)
        return values | {"sharpness": wide if number >= 8 else values["sharpness"]}

    others = dict.fromkeys(range(8, 24), SHARES_N[::-1])
    named = {one.name: one for one in moved(stream(rng, 24, change=change, shares_TN=others), training(rng))}
    assert set(named) == {"sharpness", COLORS_NAME}
    assert named["sharpness"].words.endswith("more varied") and named["sharpness"].outside > 0.3
    assert [one.since // HOUR for one in named.values()] == [8, 8]
    assert named[COLORS_NAME].effect == pytest.approx(np.abs(SHARES_N - SHARES_N[::-1]).sum() / 2 / SHARES_N.sum(), 0.2)


def test_a_change_too_small_to_matter_is_not_named_however_sure_it_is(rng: Rng) -> None:
    def change(number: int, values: Values) -> Values:
        return values | {"confidence": values["confidence"] + 0.5 * LEAST_EFFECT * 0.06}

    found = {one.name: one for one in compare(stream(rng, 12, 500, change=change), training(rng, 1500))}
    assert found["confidence"].p_value < 0.01 and not found["confidence"].moved
    assert found["confidence"].since is None


def test_statistics_without_spread_move_where_they_are_others(rng: Rng) -> None:
    usual = training(rng)
    assert not moved(stream(rng, 3), usual)
    larger = stream(rng, 3, change=lambda _, values: values | {"size": values["size"] + 1})
    (size,) = moved(larger, usual)
    assert (size.name, size.effect, size.since) == ("size", np.inf, 0)


def test_what_never_varies_does_not_differ_by_its_rounding(rng: Rng) -> None:
    def change(number: int, values: Values) -> Values:
        return values | {"size": np.full(len(values["size"]), 0.41503749927884376)}

    usual, windows = reference_of(stream(rng, 40, 12, change=change))
    (size,) = [one for one in compare(windows, usual) if one.name == "size"]
    assert size.p_value == 1.0


def test_nothing_is_said_of_few_images_and_of_no_window(rng: Rng) -> None:
    usual = training(rng)
    assert compare([], usual) == []
    bright = stream(rng, 1, 4, change=lambda _, values: values | {"brightness": values["brightness"] + 0.5})
    assert [one.p_value for one in compare(bright, usual)] == [1.0] * 8


def test_a_window_without_a_statistic_has_no_mean(rng: Rng) -> None:
    windows = stream(rng, 4)
    del windows[1].sums.values["confidence"]
    (found,) = [one for one in compare(windows, training(rng)) if one.name == "confidence"]
    assert [mean is None for mean in found.means] == [False, True, False, False]


def embedded(rng: Rng, images: int, moved_by: float) -> Sums:
    """Statistics without a change, and an embedding whose second coordinate moved."""
    place_EN = rng.standard_normal((2, images)) + np.array([[0.0], [moved_by]])
    found = sums(rng, images)
    found.values |= {f"embedding.{number}": ValueSums.of(f"embedding.{number}", its)
                     for number, its in enumerate(place_EN, 1)}  # fmt: skip
    return found


def test_an_embedding_that_moves_is_named_and_no_other(rng: Rng) -> None:
    place_EN = rng.standard_normal((2, 60)).astype(np.float32)
    held_out = {"embedding.1": place_EN[0], "embedding.2": place_EN[1], "confidence": np.full(60, math.nan, np.float32)}
    usual = with_held_out(training(rng), held_out, np.arange(20).repeat(3))
    windows = [Window("street", "3", hour * HOUR, HOUR, embedded(rng, 40, 0.8 * (hour >= 8))) for hour in range(16)]
    (found,) = moved(windows, usual)
    assert (found.name, found.scale.title, found.since) == ("embedding.2", "embedding 2", 8 * HOUR)
    assert found.effect == pytest.approx(0.8, abs=0.3)
    assert not moved(windows[:8], usual)
    assert "confidence" not in {one.name for one in compare(windows, usual)}, "the reference does not know it"
