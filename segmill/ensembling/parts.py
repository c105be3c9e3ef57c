"""Cut splits into parts that workers predict side by side: runs of whole batches, so that no bit changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segmill.ensembling.predict import PIXELS_AT_ONCE, batches

Shape = tuple[int, int]  # height and width of an image

# Measured of nine networks, backbones of 2 to 28 million parameters: 0.9 GB with nothing loaded, and 0.3 to 0.4 GB
# more per million pixels that are predicted at once, besides their probabilities.
BYTES_OF_A_PROCESS = 2**30
BYTES_PER_PX = 2**10


def cut(splits: Sequence[Sequence[Shape]], most: int) -> list[tuple[range, ...]]:
    """Return the images of each part, a range per split: ``most`` parts or fewer, none empty, of about as many pixels.

    Parts are in order, a split's images after those of the one before. Part by part ``predict.batches`` makes the same
    batches as it does of all images of a split: what a network predicts of an image can depend, in the last bit, on
    the others of its batch.

    Args:
        splits: the shapes of every image of each split.
        most: 1 or more.
    """
    # Images without channels have a shape and take no memory.
    stacks = [stack for shapes in splits for stack in batches(np.empty((*shape, 0), np.uint8) for shape in shapes)]
    ends = np.cumsum([len(stack) for stack in stacks], dtype=np.int64)
    px = np.array([stack.shape[0] * stack.shape[1] * stack.shape[2] for stack in stacks], np.int64)
    middles = np.cumsum(px) - px / 2
    part = np.arange(len(px)) if len(px) <= most else np.minimum(middles * most // px.sum(), most - 1)
    stops = ends[np.flatnonzero(np.diff(part, append=most))].tolist()
    return [_of_each(splits, start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def _of_each(splits: Sequence[Sequence[Shape]], start: int, stop: int) -> tuple[range, ...]:
    """Return which images of each split are those from ``start`` to ``stop`` of all splits after one another."""
    ranges, first = [], 0
    for shapes in splits:
        last = first + len(shapes)
        ranges.append(range(max(start - first, 0), min(stop, last) - first))
        first = last
    return tuple(ranges)


def memory_bytes(shapes: Sequence[Shape], *, classes: int, maps: int, weights_bytes: int) -> int:
    """Estimate the memory of a process that predicts images of these shapes.

    Args:
        shapes: of the images.
        classes: whose probabilities are predicted.
        maps: how many members' probabilities are in memory at once.
        weights_bytes: of all members.
    """
    most_px = max([PIXELS_AT_ONCE, *(height * width for height, width in shapes)])
    return BYTES_OF_A_PROCESS + 2 * weights_bytes + most_px * (BYTES_PER_PX + 4 * classes * maps)
