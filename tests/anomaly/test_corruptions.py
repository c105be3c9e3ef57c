"""Corruptions: the same for the same seed, stronger with each severity, and of every kind."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from segmill.anomaly.corruptions import CHOOSE_WITH, KINDS, SEVERITIES, corrupt
from segmill.data.ingest.builtin import draw_street


@pytest.fixture(scope="module")
def image_HWC() -> np.ndarray:
    return draw_street((96, 120), seed=0, sequence=4, frame=1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_is_further_away_than_the_one_before(image_HWC: np.ndarray, kind: str) -> None:
    before = image_HWC.copy()
    copies = [corrupt(image_HWC, kind, severity, seed=3) for severity in SEVERITIES]
    assert np.array_equal(image_HWC, before)
    assert all(copy.shape == image_HWC.shape and copy.dtype == np.uint8 for copy in copies)
    away = [float(np.abs(copy.astype(float) - image_HWC).mean()) for copy in copies]
    assert away[0] > 0.5 and away[-1] > away[0] and all(b > 0.9 * a for a, b in pairwise(away))
    assert np.array_equal(copies[2], corrupt(image_HWC, kind, 3, seed=3))


def test_scores_are_chosen_with_some_kinds_only() -> None:
    assert set(CHOOSE_WITH) < set(KINDS) and len(KINDS) == 12


@pytest.mark.parametrize("severity", [0, 6])
def test_there_are_five_severities(image_HWC: np.ndarray, severity: int) -> None:
    with pytest.raises(IndexError):
        corrupt(image_HWC, "fog", severity)
