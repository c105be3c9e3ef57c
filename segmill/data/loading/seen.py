"""What training saw: any sample in any epoch, pixel for pixel as the loader made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.loading.origins import Origin, read_origins
from segmill.data.loading.policy import read_policy
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.errors import InputError, near_miss


class TrainingView:
    """One member's training samples, the extra ones last, as they are and as it saw them.

    Args:
        packed_dir: packed splits.
        augmented_dir: what the augment stage wrote.
        seed: the training's.
        batch_size: samples per step, all workers together.
        crop_size: height and width of the window that training sees of each; None is all of it.
    """

    def __init__(
        self,
        packed_dir: Path,
        augmented_dir: Path,
        *,
        seed: int,
        batch_size: int,
        crop_size: Sequence[int] | None = None,
    ) -> None:
        self.info = read_pack(packed_dir)
        self.policy = read_policy(augmented_dir / "recipe.json")
        self._packed_dir = packed_dir
        self._extra = augmented_dir / "extra"
        self.split = PackedSplit(packed_dir / "train", *([self._extra] if self._extra.is_dir() else []))
        self.originals = len(self.split) - sum(self.policy.extra.values())
        size = (crop_size[0], crop_size[1]) if crop_size else self.info.size
        self._augment = Augmenter(self.policy.transforms, size, seed, ignore_id=self.info.ignore_id)
        self._batches = TrainBatches(self.split, self._augment, batch_size=batch_size, seed=seed)

    def index(self, sample: str) -> int:
        """Return the place of the sample with this id; InputError names its near miss, or the split it is in."""
        if sample in self.split.ids:
            return self.split.ids.index(sample)
        for split in ("val", "test"):
            if sample in PackedSplit(self._packed_dir / split).ids:
                raise InputError(f"{sample} is in {split}: no training ever sees it", "name a sample of train")
        raise InputError(f"train has no sample '{sample}'{near_miss(sample, self.split.ids)}")

    def original(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image (HWC uint8) and mask (HW uint8) as they are packed."""
        return self.split.image(index), self.split.mask(index)

    def seen(self, index: int, epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return image (HWC uint8) and mask (HW uint8) as training sees them in ``epoch``, counted from 0."""
        image, mask = self.original(index)
        return self._augment(image, mask, epoch=epoch, sample=self.split.ids[index])

    def takes(self, index: int, epoch: int) -> bool:
        """Tell whether ``epoch`` has the sample at all: what does not fill a batch is left out."""
        return bool((self._batches.samples(epoch) == index).any())

    def origins(self) -> Iterator[Origin]:
        """Yield where each extra sample comes from, in the order in which they were made."""
        if self._extra.is_dir():
            yield from read_origins(self._extra)
