"""A drawn scene whose every pixel is known, for the tests of what is pasted and where."""

from __future__ import annotations

import numpy as np

from segmill.data.packing.writing import Sample

SIZE = (40, 60)
ROAD, SKY, CAR, SIGN = range(4)
IGNORE = 255


def scene(number: int, things: list[tuple[int, int, int, int, int]]) -> Sample:
    """Road below sky, an ignored bonnet, and things (class, top, left, height, width) of colours of their own."""
    image = np.full((*SIZE, 3), (90, 90, 90 + number), np.uint8)
    mask = np.full(SIZE, ROAD, np.uint8)
    image[:16], mask[:16] = (200, 220, 255), SKY
    mask[36:] = IGNORE
    for class_id, top, left, height, width in things:
        box = np.s_[top : top + height, left : left + width]
        image[box], mask[box] = (10 * number, 20 * class_id, 7), class_id
    return Sample(f"s{number:02d}", f"g{number}", image, mask)
