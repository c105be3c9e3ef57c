"""Confusion counts, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from segmill.errors import InputError
from segmill.metrics.counts import confusion_counts


def test_rows_are_truth_and_ignored_pixels_are_not_counted() -> None:
    truth = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
    prediction = np.array([[0, 1, 1], [2, 0, 2]], np.uint8)
    counts = confusion_counts(truth, prediction, 3, 255)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert counts.dtype == np.int64


def test_what_is_predicted_under_ignored_pixels_does_not_matter() -> None:
    truth = np.array([[255, 1]], np.uint8)
    assert confusion_counts(truth, np.array([[200, 1]], np.uint8), 2, 255).tolist() == [[0, 0], [0, 1]]


def test_nothing_labelled_counts_nothing() -> None:
    truth = np.full((3, 4), 255, np.uint8)
    assert confusion_counts(truth, np.zeros((3, 4), np.uint8), 2, 255).sum() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_agrees_with_scikit_learn(dtype: type) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 20, (64, 48)).astype(dtype)
    prediction = random.integers(0, 20, (64, 48)).astype(dtype)
    truth[random.random(truth.shape) < 0.1] = 99
    labelled = truth != 99
    expected = confusion_matrix(truth[labelled], prediction[labelled], labels=range(20))
    assert np.array_equal(confusion_counts(truth, prediction, 20, 99), expected)


def test_twenty_classes_do_not_overflow_the_ids_own_type() -> None:
    truth = np.full((1, 2), 19, np.uint8)
    assert confusion_counts(truth, truth, 20, 255)[19, 19] == 2


@pytest.mark.parametrize(
    ("truth", "prediction", "ignore_id", "message"),
    [
        ([[0, 3]], [[0, 0]], 255, r"truth holds class ids 0\.\.3; allowed are 0\.\.1"),
        ([[0, 1]], [[0, 2]], 255, r"prediction holds class ids 0\.\.2"),
        ([[0, -1]], [[0, 0]], 255, r"truth holds class ids -1\.\.0"),
        ([[0, 1]], [[0]], 255, r"must have the same shape"),
        ([[0, 1]], [[0, 1]], 1, r"ignore_id 1 is a class id too"),
    ],
)
def test_refuses_what_cannot_be_counted(truth: list, prediction: list, ignore_id: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confusion_counts(np.array(truth), np.array(prediction), 2, ignore_id)
