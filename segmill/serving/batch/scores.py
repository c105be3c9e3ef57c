"""The table of scores: a row for each image, what the model said of it, or why it said nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from segmill.serving.batch.sources import BatchImage

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

    from segmill.serving.answers import Segmented

SHARE = "share_"  # of the pixels, before a class's name


class ImageStatus(StrEnum):
    """``ok``: it has a mask. ``unreadable``: the file is no image, until it changes. ``failed``: it is tried again."""

    OK = "ok"
    UNREADABLE = "unreadable"
    FAILED = "failed"


def row_of(
    image: BatchImage, model: Mapping[str, str], status: ImageStatus, reason: str = "", **figures: Any
) -> dict[str, Any]:
    """Return the row of an image.

    Args:
        model: ``model``, ``version`` and ``manifest_sha256``.
        reason: why it is not ok, a sentence.
        figures: ``sha256`` of the file where it was read, and what ``figures_of`` returns.
    """
    return {
        "path": image.path, "status": str(status), "reason": reason or None, "size_bytes": image.size_bytes, **model,
        **figures, "stamp": image.stamp,
    }  # fmt: skip


def figures_of(segmented: Segmented, names: Sequence[str]) -> dict[str, Any]:
    """Return the columns with what the model said of an image.

    ``confidence`` and ``margin`` are means over the pixels, 0..1: of the largest probability, and of its distance to
    the second largest. ``share_CLASS`` is the share of the pixels, 0..1. ``anomaly``, ``p_value`` and ``abstain`` are
    those of ``Anomaly``, None where the version has no detector.
    """
    from segmill.serving.answers import shares

    assert segmented.probs_KHW is not None
    height, width = segmented.ids_HW.shape
    unusual = segmented.anomaly
    return {
        "height": height, "width": width, "confidence": segmented.confidence, "margin": margin(segmented.probs_KHW),
        **({"anomaly": unusual.score, "p_value": unusual.p_value, "abstain": unusual.abstain} if unusual else {}),
        **{f"{SHARE}{name}": share for name, share in shares(segmented.ids_HW, names).items()},
    }  # fmt: skip


def margin(probs_KHW: NDArray[Any]) -> float:
    """Return the mean distance between the two largest probabilities of a pixel, 0..1; of one class alone 1."""
    if len(probs_KHW) == 1:
        return 1.0
    second_HW, first_HW = np.partition(probs_KHW.astype(np.float32), -2, axis=0)[-2:]
    return float((first_HW - second_HW).mean())


def table_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> pyarrow.Table:
    """Return rows as a table with all columns; ``names``: of the classes."""
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    columns = {
        "path": text, "status": text, "reason": text, "sha256": text, "size_bytes": pa.int64(),
        "height": pa.int32(), "width": pa.int32(), "model": text, "version": text, "manifest_sha256": text,
        "confidence": real, "margin": real, "anomaly": real, "p_value": real, "abstain": pa.bool_(),
        **{f"{SHARE}{name}": real for name in names}, "stamp": text,
    }  # fmt: skip
    return pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema(list(columns.items())))
