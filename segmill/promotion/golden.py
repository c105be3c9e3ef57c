"""Golden predictions: a few images in a version's folder, and what its ensemble predicted of them when registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmill.errors import SegmillError

MOST_DIFFERING = 1e-4  # of the pixels: another kind of device rounds otherwise
FILE = "golden.npz"  # in the model's folder: image0, ids0, image1, ...
Golden = Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def write_golden(model_dir: Path, golden: Golden) -> None:
    """Keep images HWC uint8 and the ids_HW uint8 that the ensemble predicts of them; no file where there are none."""
    if golden:
        arrays = {f"image{number}": image_HWC for number, (image_HWC, _) in enumerate(golden)}
        arrays |= {f"ids{number}": ids_HW for number, (_, ids_HW) in enumerate(golden)}
        np.savez_compressed(model_dir / FILE, allow_pickle=False, **arrays)


def read_golden(model_dir: Path) -> Golden:
    """Return what ``write_golden`` kept; nothing where there is no such file."""
    if not (model_dir / FILE).is_file():
        return []
    with np.load(model_dir / FILE, allow_pickle=False) as kept:
        return [(kept[f"image{number}"], kept[f"ids{number}"]) for number in range(len(kept.files) // 2)]


def prove(
    golden: Golden, predict: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], *, model: str, version: str
) -> tuple[int, int]:
    """Let a version predict its golden images; return their pixels, and how many get another class than they got then.

    A version of an earlier segmill has none; then it has to predict a black image.

    Args:
        golden: of ``read_golden``.
        predict: from image_BHWC uint8, C = 3, to ids_BHW uint8.
        model: the registered model's name.
        version: its number.

    Raises:
        SegmillError: more than 1 pixel in 10,000 differs.
    """
    if not golden:
        predict(np.zeros((1, 32, 32, 3), np.uint8))
    differing = sum(int((predict(image_HWC[None])[0] != ids_HW).sum()) for image_HWC, ids_HW in golden)
    pixels = sum(ids_HW.size for _, ids_HW in golden)
    if differing > MOST_DIFFERING * pixels:
        raise SegmillError(
            f"version {version} of {model} predicts other classes here than when it was registered: {differing:,} of "
            f"{pixels:,} pixels differ, and 1 in 10,000 may; compare the versions of torch with its requirements.txt"
        )
    return pixels, differing
