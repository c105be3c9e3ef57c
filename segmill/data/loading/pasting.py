"""Objects cut out of one scene and pasted into another: what counts as one, where it may go, how its edge blends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# What is an object: a connected region of a class that the image's edge does not cut, of this many pixels.
MIN_OBJECT_PX = 16
MIN_OBJECT_SIDE_PX = 3
MAX_OBJECT_SHARE = 0.15  # of its image

# Where it may go.
FOOT_JITTER = 0.03  # of the image's height, up or down
PLACES = 8  # looked at for each object
MIN_GROUND = 0.5  # share of the ground under it that must be alike before and after
MAX_COVERED = 0.1  # of its pixels that may fall on ignored ones, or on another rare class


class Object(NamedTuple):
    """A row of the table of objects; ``top`` to ``width`` is its box, ``area`` its pixels."""

    sample: int
    class_id: int
    top: int
    left: int
    height: int
    width: int
    area: int


def objects_of(mask_HW: NDArray[np.uint8], class_id: int, sample: int) -> Iterator[Object]:
    """Yield the objects of a class: connected regions of fitting size that no edge of the image cuts."""
    import cv2

    height, width = mask_HW.shape
    stats = cv2.connectedComponentsWithStats((mask_HW == class_id).astype(np.uint8))[2]
    for left, top, wide, high, area in stats[1:].tolist():
        cut_off = left == 0 or top == 0 or left + wide == width or top + high == height
        big_enough = area >= MIN_OBJECT_PX and min(wide, high) >= MIN_OBJECT_SIDE_PX
        if big_enough and not cut_off and area <= MAX_OBJECT_SHARE * height * width:
            yield Object(sample, class_id, top, left, high, wide, area)


class Patch(NamedTuple):
    """An object cut out, with a margin of one pixel.

    ``image`` HWC uint8; ``region`` HW bool, its pixels; ``around`` HW bool, those that touch its lower half; ``ground``
    the share that each of the 256 ids had of them where it came from.
    """

    image: NDArray[np.uint8]
    region: NDArray[np.bool_]
    around: NDArray[np.bool_]
    ground: NDArray[np.float64]
    class_id: int


def cut_out(
    image_HWC: NDArray[np.uint8],
    mask_HW: NDArray[np.uint8],
    one: Object,
    *,
    ignore_id: int,
    factor: float = 1.0,
    mirrored: bool = False,
) -> Patch:
    """Cut an object out of its scene, scale it by ``factor`` and exchange left and right where ``mirrored``."""
    import cv2

    # No edge of the image cuts an object, so there is one more pixel on every side.
    margin = np.s_[one.top - 1 : one.top + one.height + 1, one.left - 1 : one.left + one.width + 1]
    ids = mask_HW[margin]
    _, labels, stats, _ = cv2.connectedComponentsWithStats((ids == one.class_id).astype(np.uint8))
    label = 1 + int(np.flatnonzero((stats[1:, 2:] == (one.width, one.height, one.area)).all(axis=1))[0])
    seen = ids[_around(labels == label) & (ids != ignore_id)]
    ground = np.bincount(seen, minlength=256) / max(len(seen), 1)
    to = (max(1, round(one.width * factor)), max(1, round(one.height * factor)))
    image = cv2.resize(np.ascontiguousarray(image_HWC[margin][1:-1, 1:-1]), to, interpolation=cv2.INTER_LINEAR)
    solid = np.where(labels[1:-1, 1:-1] == label, np.uint8(255), np.uint8(0))
    region = cv2.resize(solid, to, interpolation=cv2.INTER_LINEAR) > 127
    if mirrored:
        image, region = image[:, ::-1], region[:, ::-1]
    region = np.pad(region, 1)
    return Patch(np.pad(image, ((1, 1), (1, 1), (0, 0))), region, _around(region), ground, one.class_id)


def find_place(
    patch: Patch,
    foot: int,
    mask_HW: NDArray[np.uint8],
    untouchable_HW: NDArray[np.bool_],
    ignore_id: int,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Return top and left of the best of PLACES random ones for the patch, or None where none is good enough.

    Its foot stays near row ``foot``, for objects of one size are at one height of the image; what is around its
    lower half must be like what was there before (a vehicle is on the road); and it must hide next to nothing
    ``untouchable``: ignored pixels and what is rare itself.
    """
    height, width = patch.region.shape
    if not patch.region.any():
        return None
    jitter = max(1, round(FOOT_JITTER * mask_HW.shape[0]))
    below = foot + 1  # the margin's row
    best, best_alike = None, MIN_GROUND
    for _ in range(PLACES):
        top = below + int(rng.integers(-jitter, jitter + 1)) - height
        left = int(rng.integers(max(1, mask_HW.shape[1] - width + 1)))
        place = np.s_[top : top + height, left : left + width]
        if top < 0 or top + height > mask_HW.shape[0] or left + width > mask_HW.shape[1]:
            continue
        if untouchable_HW[place][patch.region].mean() > MAX_COVERED:
            continue
        ids = mask_HW[place][patch.around]
        seen = np.bincount(ids[ids != ignore_id], minlength=256) / max(len(ids), 1)
        alike = float(np.minimum(seen, patch.ground).sum())
        if alike >= best_alike:
            best, best_alike = (top, left), alike
    return best


def paste(
    patch: Patch, image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], place: tuple[int, int], ignore_id: int
) -> list[int]:
    """Paste into image and mask, in place, save where the mask is ignored; return top, left, height, width in px.

    The edge is feathered inwards, so that nothing of the old background comes along.
    """
    import cv2

    (top, left), (height, width) = place, patch.region.shape
    box = np.s_[top : top + height, left : left + width]
    seen = patch.region & (mask_HW[box] != ignore_id)
    soft = cv2.GaussianBlur(patch.region.astype(np.float32), (3, 3), 0) * seen
    blended = soft[:, :, None] * patch.image + (1 - soft[:, :, None]) * image_HWC[box]
    image_HWC[box] = np.rint(blended).astype(np.uint8)
    mask_HW[box][seen] = patch.class_id
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    first = (int(rows[0]), int(columns[0]))
    return [top + first[0], left + first[1], int(rows[-1]) + 1 - first[0], int(columns[-1]) + 1 - first[1]]


def _around(region_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels that touch the region, in the lower half of its box."""
    import cv2

    grown: NDArray[np.bool_] = cv2.dilate(region_HW.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    grown &= ~region_HW
    grown[: region_HW.shape[0] // 2] = False
    return grown
