"""Scores from counts, by hand and against torchmetrics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from segmill.errors import InputError
from segmill.metrics import scores
from segmill.metrics.counts import confusion_counts

# Class 0: 3 right of 4 true, 5 predicted. Class 1: 2 right of 4 true, 3 predicted. Class 2 is nowhere.
TABLE = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def test_table_by_hand() -> None:
    np.testing.assert_allclose(scores.iou(TABLE), [3 / 6, 2 / 5, np.nan])
    np.testing.assert_allclose(scores.dice(TABLE), [6 / 9, 4 / 7, np.nan])
    assert scores.miou(TABLE) == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert scores.mdice(TABLE) == pytest.approx((6 / 9 + 4 / 7) / 2)
    assert scores.accuracy(TABLE) == pytest.approx(5 / 8)


def test_a_class_only_predicted_is_zero_not_nan() -> None:
    assert scores.iou(np.array([[4, 1], [0, 0]])).tolist() == [0.8, 0.0]


def test_counts_are_summed_before_dividing() -> None:
    tables = np.array([[[9, 1], [0, 0]], [[0, 0], [1, 1]]])
    np.testing.assert_allclose(scores.iou(tables), [9 / 11, 1 / 3])
    assert scores.miou(tables) == pytest.approx((9 / 11 + 1 / 3) / 2)
    assert scores.accuracy(tables) == pytest.approx(10 / 12)


def test_no_pixel_at_all_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = np.zeros((0, 2, 2), np.int64)
        assert np.isnan(scores.iou(nothing)).all()
        assert np.isnan([scores.miou(nothing), scores.mdice(nothing), scores.accuracy(nothing)]).all()


def test_counts_past_the_32_bit_range() -> None:
    assert scores.accuracy(np.array([[3_000_000_000, 1_000_000_000], [0, 0]])) == 0.75


def test_refuses_a_table_that_is_not_square() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\); allowed is K x K"):
        scores.iou(np.zeros((2, 3)))


def test_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_jaccard_index
    from torchmetrics.functional.segmentation import dice_score

    random = np.random.default_rng(1)
    truth = random.integers(0, 5, (3, 16, 16))
    prediction = np.where(random.random(truth.shape) < 0.7, truth, random.integers(0, 5, truth.shape))
    tables = np.stack([confusion_counts(t, p, 5, 255) for t, p in zip(truth, prediction, strict=True)])
    truth_t, prediction_t = torch.from_numpy(truth), torch.from_numpy(prediction)
    expected_iou = multiclass_jaccard_index(prediction_t, truth_t, num_classes=5, average="none")
    np.testing.assert_allclose(scores.iou(tables), expected_iou.numpy(), rtol=1e-6)
    # One long "image" makes torchmetrics' mean over samples the score of the set.
    expected_dice = dice_score(
        prediction_t.reshape(1, 48, 16),
        truth_t.reshape(1, 48, 16),
        num_classes=5,
        average=None,
        input_format="index",
    )
    np.testing.assert_allclose(scores.dice(tables), expected_dice[0].numpy(), rtol=1e-6)
