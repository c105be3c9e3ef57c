"""Images that are kept to be looked at: a share of those served, in a folder, until they expire. Off by default."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmill.data.storage.images import encode_png
from segmill.errors import InputError
from segmill.files import write_atomically

KEEP_S = 7 * 86_400


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Where a share of the served images is kept.

    Attributes:
        folder: whoever may read it sees the images; only its owner may where segmill makes it.
        share: of the images, in (0, 1].
        keep_s: a file that is older is deleted; other files in the folder are left alone.
    """

    folder: Path
    share: float
    keep_s: float = KEEP_S

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"a share of {self.share:g} of the images can't be kept", "name one above 0, at most 1")
        if not self.keep_s > 0:
            raise InputError(f"images can't be kept for {self.keep_s:g} s", "name a time above 0")

    def keep(self, request: str, version: str, image_HWC: NDArray[np.uint8]) -> None:
        """Keep an image, or not, by chance. Raises OSError where it can't be written."""
        if random.random() >= self.share:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"sample-{time.time_ns() // 1000}-{version}-{request}.png"
        write_atomically(self.folder / name, encode_png(np.ascontiguousarray(image_HWC)), durable=False)

    def clean(self) -> None:
        """Delete what expired. Raises OSError where it can't be deleted."""
        for path in self.kept():
            if int(path.name.split("-")[1]) / 1e6 < time.time() - self.keep_s:
                path.unlink(missing_ok=True)

    def kept(self) -> Sequence[Path]:
        """Return the files that are kept, the oldest first."""
        return sorted(path for path in self.folder.glob("sample-*.png") if path.name.split("-")[1].isdigit())
