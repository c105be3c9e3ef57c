"""Files of foreign sets, written pixel by pixel, and what a reader made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest.formats import Found
from segmill.data.ingest.intake import NewSample
from segmill.data.schema.issues import Issue
from segmill.data.storage.images import read_image, read_mask

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return a writer of pixels to a path below ``tmp_path``; ``palette``: colours of the indices, 0 upwards."""

    def write(name: str, pixels: object, palette: list[int] | None = None, dtype: type = np.uint8) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.array(pixels, dtype))
        if palette is not None:
            image = image.convert("L")
            image.putpalette(palette + [0] * (768 - len(palette)))
        image.save(path)
        return path

    return write


class Taken:
    """All that a set delivered: samples by id, issues by file, and the pixels of both files of a sample."""

    def __init__(self, found: Found) -> None:
        self.samples: dict[str, NewSample] = {}
        self.issues: dict[str, Issue] = {}  # the last of each file
        self.found: list[Issue] = []
        for one in found.samples:
            if isinstance(one, Issue):
                self.issues[one.file] = one
                self.found.append(one)
            else:
                self.samples[one.id] = one

    def image(self, sample_id: str) -> np.ndarray:
        return read_image(self.samples[sample_id].image)

    def mask(self, sample_id: str) -> list[list[int]]:
        return read_mask(self.samples[sample_id].mask).tolist()

    def places(self) -> dict[str, tuple[str | None, str | None]]:
        """Return group and split by id."""
        return {name: (one.group, one.split) for name, one in self.samples.items()}


@pytest.fixture
def take() -> Callable[[Found], Taken]:
    return Taken
