"""The test of exchangeability: seldom wrong however long it runs, quick when something changed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, kstest

from segmill.monitoring.shift import BETS, ShiftTest, stake_on

STREAMS = 100


def streamed(rng: np.random.Generator, seen: int, scores: np.ndarray, seed: int = 0) -> ShiftTest:
    test = ShiftTest(list(rng.normal(size=seen)), seed=seed)
    test.add_all(scores)
    return test


def test_ranks_are_independent_and_uniform_while_nothing_changes() -> None:
    """Also where many scores are the same."""
    rng = np.random.default_rng(0)
    test = ShiftTest(list(np.round(rng.normal(size=30), 1)), seed=1)
    p_values = [one.p_value for one in test.add_all(np.round(rng.normal(size=3000), 1))]
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p_values[:-1], p_values[1:])[0, 1]) < 3 / math.sqrt(3000)


def test_false_alarms_are_as_rare_as_stated_at_any_time() -> None:
    rng = np.random.default_rng(5)
    alarms = sum(streamed(rng, 50, rng.normal(size=400), seed).alarm_at is not None for seed in range(STREAMS))
    assert alarms <= binom.ppf(0.995, STREAMS, 0.05)


def test_the_stakes_add_up_to_less_than_one() -> None:
    most = 200_000
    assert sum(map(stake_on, range(1, most))) + 1 / math.log(most) / 1.0695 == pytest.approx(0.9996, abs=1e-4)


def test_every_bet_is_fair() -> None:
    """The mean of each factor over uniform ranks is 1, else Ville's bound does not hold."""
    for bet in BETS:
        mean, _ = quad(np.ones_like, 0, 1, weight="alg", wvar=(bet - 1, 0))  # of p ** (bet - 1)
        assert bet * mean == pytest.approx(1.0)


@pytest.mark.parametrize("quiet", [0, 300])
def test_a_change_is_found_soon_and_dated(quiet: int) -> None:
    rng, found, dated = np.random.default_rng(2), 0, []
    for seed in range(40):
        scores = np.concatenate([rng.normal(size=quiet), rng.normal(1.5, size=100)])
        verdicts = ShiftTest(list(rng.normal(size=60)), seed=seed).add_all(scores)
        alarms = [one for one in verdicts if one.alarm]
        found += bool(alarms) and alarms[0].number > quiet
        dated += [alarms[0].since - quiet] if alarms else []
    assert found >= 38
    assert abs(np.median(dated)) <= 10


def test_an_alarm_stays_and_numbers_do_not_overflow() -> None:
    test = ShiftTest([0.0] * 10)
    verdicts = test.add_all([math.nan, *np.arange(1.0, 3000.0)])
    assert all(one.alarm for one in verdicts[40:]) and math.isfinite(verdicts[-1].evidence)


def test_the_same_stream_gives_the_same_verdicts() -> None:
    scores = np.round(np.random.default_rng(1).normal(size=50), 1)
    one, other = (ShiftTest([0.0, 0.1, 0.2], seed=4).add_all(scores) for _ in range(2))
    assert one == other
