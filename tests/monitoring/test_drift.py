"""The stream of one version: alarms that say since when, and images too close to one another to count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segmill.monitoring.drift import Drift, StreamWatch


def test_a_change_is_dated() -> None:
    random = np.random.default_rng(3)
    watch = StreamWatch(random.normal(size=40).tolist(), every_s=0)
    assert watch.drift == Drift() and math.isnan(watch.drift.since_s)
    for minute in range(200):
        assert not watch.take([random.normal()], now_s=60.0 * minute).alarm
    for minute in range(200, 300):
        found = watch.take([random.normal(4)], now_s=60.0 * minute)
        if found.alarm:
            break
    assert found.alarm and found.evidence >= 20 and found.images <= 230
    assert found.since_s == pytest.approx(60.0 * 200, abs=60 * 10)


def test_what_it_said_at_the_alarm_stays_whatever_comes_after() -> None:
    watch = StreamWatch([0.0] * 40, every_s=0)
    watch.take([*range(1, 40), *([-1.0] * 400)], now_s=100.0)
    assert watch.alarmed and watch.alarmed.alarm and watch.alarmed.evidence >= 20 and watch.alarmed.images < 40
    assert watch.drift.alarm and watch.drift.images == 439 and watch.drift.evidence < watch.alarmed.evidence
    assert StreamWatch([0.0], every_s=0).alarmed is None


def test_images_too_close_to_one_another_count_once() -> None:
    watch = StreamWatch([0.0, 1.0], every_s=10)
    assert watch.take([0.5, 0.5, 0.5], now_s=100.0).images == 1
    assert watch.take([0.5], now_s=109.0).images == 1
    assert watch.take([0.5, 0.5], now_s=110.0).images == 2
    everything = StreamWatch([0.0, 1.0], every_s=0)
    assert everything.take([0.5, 0.5, 0.5], now_s=100.0).images == 3


def test_one_camera_that_repeats_itself_raises_no_alarm_where_images_are_spaced() -> None:
    """600 nearly equal images within a minute count as 6."""
    watch = StreamWatch(np.random.default_rng(1).normal(size=40).tolist(), every_s=10)
    for tenth in range(600):
        found = watch.take([0.8 + 1e-6 * tenth], now_s=tenth / 10)
    assert found.images == 6 and not found.alarm
