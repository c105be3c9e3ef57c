"""Sealed groups: the part of a packed split whose results may be shown, and the part that only the gate sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.packed import PackedSplit
from segmill.errors import InputError


class SplitPart:
    """Some samples of a packed split, read as the split is. ``indices``: their numbers in the split, in order."""

    def __init__(self, split: PackedSplit, indices: Sequence[int]) -> None:
        self.indices = list(indices)
        self._split = split
        groups = split.groups
        self.ids = [split.ids[index] for index in self.indices]
        self.groups = [groups[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def shape(self, index: int) -> tuple[int, int]:
        """Return height and width in px of the part's sample ``index``."""
        return self._split.shape(self.indices[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image of the part's sample ``index``: HWC uint8 RGB, a read-only view."""
        return self._split.image(self.indices[index])

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of the part's sample ``index``: HW uint8 class ids, a read-only view."""
        return self._split.mask(self.indices[index])


def sealed_rows(groups: Sequence[str], sealed: Collection[str]) -> NDArray[np.bool_]:
    """Say of each sample, by its group, whether it is sealed: N booleans."""
    return np.array([group in sealed for group in groups], dtype=bool)


def open_part(split: PackedSplit, sealed: Collection[str]) -> SplitPart:
    """Return the samples whose results may be shown: all but those of the ``sealed`` groups."""
    return SplitPart(split, np.flatnonzero(~sealed_rows(split.groups, sealed)).tolist())


def sealed_part(split: PackedSplit, sealed: Collection[str]) -> SplitPart:
    """Return the samples that the gate alone sees. InputError where the split has none of these groups."""
    part = SplitPart(split, np.flatnonzero(sealed_rows(split.groups, sealed)).tolist())
    if not len(part):
        raise InputError("no sample of the packed split is in a group of split.sealed", "run `segmill retrain`")
    return part
