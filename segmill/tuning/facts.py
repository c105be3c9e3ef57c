"""What is known before a plan: of a set, of a machine, and what proposals look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segmill.tuning.forecast import Candidate

if TYPE_CHECKING:
    from segmill.data.ingest.hints import Look

MOST = 0.8  # of the images: if so many have one size, it is the set's


@dataclass(frozen=True)
class Facts:
    """What is known about data and machine; about the data, the train split unless said otherwise.

    ``sizes``: (height, width) in px, without prepare.border_crop_px, to the number of train samples of that size.
    ``val_px``, ``test_px``: pixels of all images of the split, which are predicted at their own size. ``class_pixels``:
    pixels in train by class name. ``class_samples``: in how many train samples a class occurs. ``look``: what the
    images show, None where that is not known. ``recipe``: augment.recipe where it was chosen before. ``overlap_px``:
    prepare's, of tiles. ``gpu``: its name, None without one. ``quick_bf16``: whether bf16 is faster than fp32 here.
    """

    samples: int
    val_px: int
    test_px: int
    sizes: dict[tuple[int, int], int]
    class_pixels: dict[str, int]
    class_samples: dict[str, int]
    look: Look | None
    cores: int
    memory_gib: float
    gpu: str | None
    gpu_memory_gib: float
    quick_bf16: bool
    candidates: tuple[Candidate, ...]
    recipe: str | list[dict[str, Any]] | None = None
    overlap_px: int = 32

    @property
    def usual(self) -> tuple[int, int]:
        """Height and width that most train images have, else the median of heights and of widths."""
        size, count = max(self.sizes.items(), key=lambda item: item[1])
        if count >= MOST * self.samples:
            return size
        each = [size for size, count in self.sizes.items() for _ in range(count)]
        heights, widths = (sorted(side) for side in zip(*each, strict=True))
        return heights[self.samples // 2], widths[self.samples // 2]

    def sharing(self, count: int) -> tuple[float, int]:
        """Return what share of the machine each of ``count`` members trains on, and in how many turns they do.

        As resources.even_share has it on CPUs; on a GPU they train after one another.
        """
        if self.gpu:
            return 1.0, count
        cpus = self.cores / count
        cpus = int(cpus) if cpus >= 1 else max(0.5, int(cpus * 100) / 100)
        return cpus / self.cores, math.ceil(count / int(self.cores / cpus))


@dataclass(frozen=True)
class Proposal:
    """A key of params.yaml, the value proposed for it, and why in one sentence."""

    key: str
    value: Any
    why: str
