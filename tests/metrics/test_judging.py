"""The scores that judge: a class that the truth does not hold counts nowhere, whatever is predicted."""

from __future__ import annotations

import numpy as np
import pytest

from segmill.metrics import judging, scores

# Class 0: 3 right of 4 true, 5 predicted. Class 1: 2 right of 4 true, 3 predicted. Class 2 is not in the truth.
TABLE = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def test_with_every_predicted_class_in_the_truth_it_is_the_score_of_training() -> None:
    for name in ("iou", "dice", "miou", "mdice"):
        np.testing.assert_allclose(getattr(judging, name)(TABLE), getattr(scores, name)(TABLE))
    assert judging.miou(TABLE) == pytest.approx((3 / 6 + 2 / 5) / 2)


def test_one_stray_pixel_of_an_absent_class_costs_its_own_class_a_pixel_and_no_more() -> None:
    before = np.array([[2, 1, 0], [0, 2, 0], [0, 0, 0]])
    after = np.array([[2, 0, 1], [0, 2, 0], [0, 0, 0]])
    assert judging.miou(before) == pytest.approx(2 / 3)
    assert judging.miou(after) == pytest.approx((2 / 3 + 1) / 2), "class 1 even gains: the pixel was its false one"
    assert scores.miou(after) == pytest.approx((2 / 3 + 1 + 0) / 3), "the definition of training takes a third"
    assert np.isnan(judging.iou(after)[2]) and np.isnan(judging.dice(after)[2])
    assert judging.mdice(after) == pytest.approx((4 / 5 + 1) / 2)


def test_counts_are_summed_before_a_class_is_absent() -> None:
    tables = np.array([[[9, 1], [0, 0]], [[0, 0], [1, 1]]])
    np.testing.assert_allclose(judging.iou(tables), [9 / 11, 1 / 3])


def test_no_pixel_at_all_is_nan() -> None:
    nothing = np.zeros((2, 3, 3), np.int64)
    assert np.isnan([judging.miou(nothing), judging.mdice(nothing)]).all()
