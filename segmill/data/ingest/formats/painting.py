"""Objects as pixels: polygons and run lengths become patches, and patches of many objects one mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError

MAX_WINDINGS = 100  # times around the image: what filling a polygon costs grows with its length


@dataclass(frozen=True)
class ObjectMask:
    """The pixels of one object: ``packed`` bits of a ``height`` x ``width`` part of the image at ``top``, ``left``."""

    area: int
    top: int
    left: int
    height: int
    width: int
    packed: NDArray[np.uint8]

    @classmethod
    def of(cls, inside_HW: NDArray[np.bool_], top: int = 0, left: int = 0) -> ObjectMask:
        """Cut out of HW pixels, themselves at ``top``, ``left`` of the image, the part that holds the object."""
        rows, columns = (np.flatnonzero(inside_HW.any(axis)) for axis in (1, 0))
        if not rows.size:
            return cls(0, top, left, 0, 0, np.zeros(0, np.uint8))
        cut = inside_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = cut.shape
        return cls(int(cut.sum()), top + int(rows[0]), left + int(columns[0]), height, width, np.packbits(cut))

    def paint(self, mask_HW: NDArray[np.uint8], class_id: int) -> None:
        """Write ``class_id`` into the mask where the object is."""
        inside = np.unpackbits(self.packed, count=self.height * self.width).reshape(self.height, self.width)
        part = mask_HW[self.top : self.top + self.height, self.left : self.left + self.width]
        part[inside.astype(bool)] = class_id


def paint_objects(mask_HW: NDArray[np.uint8], objects: list[tuple[ObjectMask, int]]) -> None:
    """Paint objects (pixels and class id) from the largest to the smallest; equal ones in the order they come in."""
    for patch, class_id in sorted(objects, key=lambda one: -one[0].area):
        patch.paint(mask_HW, class_id)


def decode_region(outline: object, height: int, width: int) -> ObjectMask:
    """Return the pixels that polygons, a counted or a compressed RLE cover, in an image of ``height`` x ``width`` px.

    Polygons go through pycocotools, so that their pixels are COCO's. What it gets is checked first: its C code trusts
    lengths and coordinates. InputError for outlines that are none of the three or do not fit the image.
    """
    if isinstance(outline, list):
        return _polygons(outline, height, width)
    if not isinstance(outline, dict) or outline.get("size") != [height, width]:
        given = outline.get("size") if isinstance(outline, dict) else type(outline).__name__
        raise InputError(f"its outline is for size {str(given)[:40]}, the image has {[height, width]}", "correct it")
    counts = outline.get("counts")
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise InputError("its RLE holds other counts than whole numbers from 0 up", "correct it")
    if sum(runs) != height * width:
        raise InputError(f"its RLE covers {sum(runs)} px, the image has {height * width}", "correct it")
    return _of_runs(runs, height)


def _of_runs(runs: list[int], height: int) -> ObjectMask:
    """Return the pixels of run lengths (off, on, off, ... down the columns); only columns with some are unfolded."""
    ends = np.cumsum(runs)
    on = np.flatnonzero(np.array(runs) > 0)
    on = on[on % 2 == 1]
    if not on.size:
        return ObjectMask.of(np.zeros((0, 0), bool))
    left, right = int(ends[on[0] - 1]) // height, (int(ends[on[-1]]) - 1) // height + 1
    inner = np.diff(np.clip(ends, left * height, right * height), prepend=left * height)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, inner)
    return ObjectMask.of(flat.reshape(right - left, height).T, left=left)


def _polygons(outline: Sequence[object], height: int, width: int) -> ObjectMask:
    from pycocotools import mask as coco

    corners = [_points(polygon, height, width).ravel().tolist() for polygon in outline]
    filled = coco.merge(coco.frPyObjects(corners, height, width))
    return _of_runs(_uncompressed(filled["counts"].decode()), height)


def _points(polygon: object, height: int, width: int) -> NDArray[np.float64]:
    """Return a polygon's corners, N x 2. InputError where there are no three, or where it leads or winds too far."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise InputError("its polygon is no list of 3 or more pairs x, y", "correct it")
    if not all(type(value) in (int, float) for value in polygon):
        raise InputError("its polygon holds other things than numbers", "correct it")
    reach = 2 * max(height, width)
    if not all(-reach <= value <= reach for value in polygon):  # NaN is none either
        raise InputError(f"its polygon leads more than {reach} px away", "correct it")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()
    if length > MAX_WINDINGS * (height + width):
        raise InputError(f"its polygon is {length:.0f} px long, more than {MAX_WINDINGS} times around", "simplify it")
    return points


def _uncompressed(text: str) -> list[int]:
    """Return the run lengths of a compressed RLE: 5 bits a character from '0' on, bit 6 says that more follow, and from
    the fourth run on the difference to the last but one is kept. Source: cocoapi, common/maskApi.c, rleFrString."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise InputError("its compressed RLE holds what is no RLE", "correct it")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError("its compressed RLE ends within a number", "correct it")
    return runs
