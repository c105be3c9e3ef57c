"""Small sets on disk that the data room's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.schema.manifest import ClassInfo, DatasetInfo, write_dataset_info

CLASSES = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000"))
SetWriter = Callable[..., Path]


@pytest.fixture
def write_set(tmp_path: Path) -> SetWriter:
    """Return a writer of two-class sets: samples {id: (image, mask)} -> raw folder."""

    def write(samples: dict[str, tuple[np.ndarray, np.ndarray]], **info: object) -> Path:
        raw_dir = tmp_path / "raw"
        facts = {"name": "tiny", "classes": CLASSES, "ignore_id": 255, **info}
        write_dataset_info(raw_dir, DatasetInfo(**facts))
        for kind in ("images", "masks"):
            (raw_dir / kind).mkdir(exist_ok=True)
        for sample_id, (image, mask) in samples.items():
            for kind, pixels in (("images", image), ("masks", mask)):
                path = raw_dir / kind / f"{sample_id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        return raw_dir

    return write


@pytest.fixture
def tiny_set(write_set: SetWriter) -> Path:
    """Three RGB samples of 4 x 6 px, one per split, the images all 10, 20, 30; masks: left half 1."""
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :3] = 1
    splits = {"train": ("a",), "val": ("b",), "test": ("c",)}
    values = {"a": 10, "b": 20, "c": 30}
    samples = {name: (np.full((4, 6, 3), value, np.uint8), mask) for name, value in values.items()}
    return write_set(samples, splits=splits)
