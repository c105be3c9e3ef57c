"""Golden predictions: a few images in a version's folder, and what its ensemble predicted of them when registered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
