"""What a run will see and how long it takes: samples, steps, epochs and minutes, from measured speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segmill.data.packing.resizing import Resizing, pixels_of

FORWARD_SHARE = 1 / 3  # of a training step's time per pixel: what a prediction takes
OVERHEAD_S = 30  # of a run: starts of servers and processes, checks, records, report


@dataclass(frozen=True)
class PastTraining:
    """What a finished training did: ``pixels_s`` a second, on ``share`` of the machine, in steps of ``px`` pixels."""

    px: int
    share: float
    pixels_s: float


@dataclass(frozen=True)
class Candidate:
    """A member that could be trained here, on all cores.

    A step takes ``step_s`` seconds, and one more for every ``pixels_s`` pixels of its images, as measured.
    ``settings``: other keys of it, such as decoder_width. ``trained``: what trainings of this network did here.
    ``cores``: of the machine.
    """

    name: str
    backbone: str
    decoder: str
    weights: str
    lr: float
    pixels_s: float
    settings: dict[str, Any] = field(default_factory=dict)
    step_s: float = 0.0
    trained: tuple[PastTraining, ...] = ()
    cores: int = 1

    @property
    def pretrained(self) -> bool:
        return self.weights != "none"

    def speed(self, px: float, share: float = 1.0) -> float:
        """Return pixels per second on ``share`` of the machine, in steps of ``px`` pixels, those of all their images.

        As measured; where a training was slower or faster than that, so is this: the one that was most alike counts.
        """
        measured = self._measured(px, share)
        if not self.trained:
            return measured

        def unlike(one: PastTraining) -> float:
            return abs(math.log(one.px / px)) + abs(math.log(one.share / share))

        like = min(self.trained, key=unlike)
        return like.pixels_s * measured / self._measured(like.px, like.share)

    def _measured(self, px: float, share: float) -> float:
        fixed_s = self.step_s / min(1.0, share * self.cores)  # the work of one thread, which may have less than a core
        return px / (px / (self.pixels_s * share) + fixed_s)


@dataclass(frozen=True)
class Seen:
    """What an epoch of training sees: ``samples`` images, or the tiles they are cut into, of ``size`` (height, width).

    ``size`` is what is left after the crop.
    """

    samples: int
    size: tuple[int, int]

    @property
    def px(self) -> int:
        """Pixels of a sample."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True)
class Forecast:
    """What becomes of a run: of each member, and ``minutes`` of all. ``what``: images, or tiles."""

    samples: int
    what: str
    batch: int
    steps: float
    epochs: float
    training_minutes: float
    minutes: float

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.samples // self.batch)

    def __str__(self) -> str:
        return (
            f"forecast: {self.samples:,} {self.what} make {self.steps_per_epoch:,} steps of {self.batch} an epoch; a "
            f"member takes about {self.steps:,.0f} steps, {self.epochs:.1f} epochs, in {self.training_minutes:.1f} "
            f"minutes, and the whole run {self.minutes:.1f} minutes"
        )


def samples_of(sizes: Mapping[tuple[int, int], int], how: Resizing, extra: float = 0.0) -> int:
    """Return how many samples training has of images of these heights and widths (to their number).

    ``extra``: the share that the augment stage adds. InputError where the border crop leaves nothing of an image.
    """
    count = sum(sizes.values())
    if how.resize == "tile" and how.size:
        tile_px = how.size[0] * how.size[1]
        count = sum(count * (pixels_of(*size, how) // tile_px) for size, count in sizes.items())
    return count + round(extra * count)


def epoch_seconds(seen: Seen, batch: int, speed: float) -> float:
    """Return the seconds of an epoch's steps; what does not fill a batch is left out, as in training."""
    return max(1, seen.samples // batch) * batch * seen.px / speed


def prediction_seconds(px: float, speed: float) -> float:
    """Return the seconds in which a member predicts images of ``px`` pixels in all."""
    return px * FORWARD_SHARE / speed
