"""Confusion counts, from which every metric, interval and gate decision is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError

IntArray = NDArray[np.int64]


def confusion_counts(truth_HW: NDArray[Any], prediction_HW: NDArray[Any], num_classes: int, ignore_id: int) -> IntArray:
    """Count pixels by true and predicted class.

    Args:
        truth_HW: integer class ids, any shape; pixels equal to ``ignore_id`` are not counted.
        prediction_HW: integer class ids in ``0..num_classes-1``, the same shape. Its values where the
            truth is ignored do not matter.
        num_classes: K.
        ignore_id: the id in the truth that marks an unlabelled pixel.

    Returns:
        K x K int64, row = true class, column = predicted class.

    Raises:
        InputError: shapes differ, or a counted pixel has an id outside ``0..num_classes-1``.
    """
    if truth_HW.shape != prediction_HW.shape:
        raise InputError(
            f"Truth is {truth_HW.shape} and prediction {prediction_HW.shape}; "
            "they must have the same shape: predict at the image's own size."
        )
    if 0 <= ignore_id < num_classes:
        raise InputError(f"ignore_id {ignore_id} is a class id too; give it one outside 0..{num_classes - 1}.")
    labelled = truth_HW != ignore_id
    truth, prediction = truth_HW[labelled], prediction_HW[labelled]
    for name, ids in (("truth", truth), ("prediction", prediction)):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
            raise InputError(
                f"The {name} holds class ids {int(ids.min())}..{int(ids.max())}; "
                f"allowed are 0..{num_classes - 1} and, in the truth, ignore_id {ignore_id}."
            )
    # numpy's bincount wants intp and converts anyway; one int64 array made here is that conversion.
    cell = truth.astype(np.int64) * num_classes + prediction
    return np.bincount(cell, minlength=num_classes * num_classes).reshape(num_classes, num_classes)
