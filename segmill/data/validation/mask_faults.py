"""What the pixels of masks give away about how they were made wrongly, and how that is repaired.

Each mask is looked at for itself (``look_at_mask``), then all are read together (``read_together``): that 255 means
for 1, or that every id is one too high, only the whole set can tell. A diagnosis is named where nothing harmless
explains it; where two things do, both are said and nothing is repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmill.data.schema.manifest import DatasetInfo
from segmill.data.schema.mask_values import MAX_CLASSES, colours_to_ids, distinct_colours, ids_by_info
from segmill.data.storage.images import RawMask, read_mask, read_raw_mask
from segmill.errors import InputError

IMAGE_FLAT = 2  # largest spread of a channel in an image "all one colour": what JPEG makes of a black frame
OFF_BY_PX = 2  # sizes this close come from rounding in a resize or crop; larger differences may be another picture
ALIGNED = 1.25  # times as much contrast of the image along the mask's borders: then the mask fits this way, not that

# A strange value (no class, not ignored, not 255) is the stain of a border where its pixels are thinly along it; a real
# region has pixels whose 3 x 3 neighbours are all the same. Measured on 30 street scenes and 30 0/255 masks each
# (benchmarks/mask_doctor.py), smoothed in six ways and through JPEG of quality 60 to 95.
FLAT_SHARE = 0.1  # of a strange value's pixels are inside regions: then it is an id of its own, drawn on purpose
FAR = 24  # from every id: a value that near may be an id blurred by JPEG ...
FAR_SHARE = 0.2  # ... of strange pixels are farther: 0.00 to 0.07 after JPEG, 0.32 and more after smoothing
SOFT_PX = 6  # no usual smoothing reaches farther from a border
BETWEEN_SHARE = 0.7  # of smoothed pixels are between a lower and a higher id; a line drawn in another id does not
HALO_PX = 8  # JPEG stains its block of 8 x 8 px, no farther
HALO_SHARE = 0.9  # of strange pixels are that near to a border
HALO_VALUES = 5  # different strange values: JPEG leaves 7 to 70, a few wrong ids are wrong ids
HALO_FLAT = 0.15  # of them may look like a region, for JPEG's blocks are flat; 0.41 of an undeclared class's are

# Values between two ids that are ids themselves can only be told by how often a border has such a step in it. With 4
# classes or fewer neighbours in id are often neighbours in space (skull, fluid, grey, white), so nothing is said then.
RAMP_CLASSES = 5
RAMP_JUMP = 3  # of id across the border
RAMP_SHARE = 0.25  # of such borders are stepped: at most 0.02 in clean scenes and CamVid, 0.3 to 1 after smoothing
RAMP_MIN = 20  # borders looked at, or the share means nothing
RAMP_LINES = 256  # rows, and columns, looked at: enough at any size

SHIFT_MIN = 5  # masks, or an offset common to all says little
LOST_SHARE = 0.25  # of all pixels ignored while the last class is absent: perhaps class 0, wrapped around to 255

TIFF_MAGIC = (b"II*\0", b"MM\0*")
_JPEG = b"\xff\xd8\xff"


class MaskLook(NamedTuple):
    """What one mask is, looked at alone.

    ``ids``: its pixels, H x W uint8, or None where they are colours. ``values``: raw value -> pixels, without the
    stains along borders; empty where values say nothing. ``kinds``: what is wrong already. ``readable``: it is as
    masks must be stored. ``two_level``: nearly all pixels are near 0 or near 255. ``colours``: those of a colour mask;
    ``by_colour``: the ids they have in dataset.yaml, where all have one.
    """

    ids: NDArray[np.uint8] | None
    shape: tuple[int, int]
    values: dict[int, int]
    kinds: tuple[str, ...]
    readable: bool = True
    two_level: bool = False
    colours: tuple[str, ...] = ()
    by_colour: NDArray[np.uint8] | None = None


def look_at_mask(content: bytes, info: DatasetInfo) -> MaskLook:
    """Look at an encoded mask. InputError where it can't be decoded."""
    lossy = content.startswith(_JPEG)
    kinds: list[str] = []
    try:
        ids = read_mask(content)
    except InputError:
        raw = read_raw_mask(content)
        if raw.pixels.ndim == 3:
            return _look_at_colours(raw, info)
        if raw.pixels.size and raw.pixels.max() > 255:
            raise
        ids, lossy = raw.pixels.astype(np.uint8), raw.lossy
        kinds.append("mask_format")
    pixels = np.bincount(ids.ravel(), minlength=256)
    if lossy:
        two_level = pixels[64:192].sum() < 0.05 * ids.size and pixels[1] < 0.1 * ids.size and pixels[192:].any()
        return MaskLook(ids, ids.shape, {}, (*kinds, "jpeg_mask"), not kinds, bool(two_level))
    if pixels[~_known(info)].any() and (by_colour := _palette_ids(content, info)) is not None:
        return MaskLook(None, ids.shape, {}, ("colour_mask",), by_colour=by_colour)
    stain, stains = find_stains(ids, pixels, info)
    if stain:
        kinds.append(stain)
        pixels[stains] = 0
    if stain == "jpeg_mask":
        pixels[:] = 0
    values = {int(value): int(pixels[value]) for value in np.flatnonzero(pixels)}
    return MaskLook(ids, ids.shape, values, tuple(kinds), "mask_format" not in kinds)


def _look_at_colours(raw: RawMask, info: DatasetInfo) -> MaskLook:
    shape = (raw.pixels.shape[0], raw.pixels.shape[1])
    if raw.lossy:
        return MaskLook(None, shape, {}, ("jpeg_mask",), readable=False)
    try:
        by_colour = colours_to_ids(raw.pixels, info.classes)
    except InputError:
        by_colour = None
    colours = tuple(distinct_colours(raw.pixels))[:MAX_CLASSES]
    return MaskLook(None, shape, {}, ("colour_mask",), readable=False, colours=colours, by_colour=by_colour)


def _palette_ids(content: bytes, info: DatasetInfo) -> NDArray[np.uint8] | None:
    """Return the class ids that the colours of a palette mask have, where its indices are none but the colours are."""
    raw = read_raw_mask(content)
    if raw.palette is None:
        return None
    try:
        return ids_by_info(raw, info)
    except InputError:
        return None


def find_stains(
    mask_HW: NDArray[np.uint8], pixels: NDArray[np.int64], info: DatasetInfo
) -> tuple[Literal["", "soft_edges", "jpeg_mask"], list[int]]:
    """Tell whether a mask's borders are stained, by smoothing or by JPEG, and with which values that are no ids.

    ``pixels``: how many pixels each of the 256 values has.
    """
    known = _known(info)
    strange_values = np.flatnonzero(pixels.astype(bool) & ~known)
    if not len(strange_values):
        return ("soft_edges" if _ramped(mask_HW, info) else ""), []
    import cv2

    strange_HW = (~known)[mask_HW]
    count = int(strange_HW.sum())
    square = np.ones((3, 3), np.uint8)
    flat_HW = strange_HW & (cv2.erode(mask_HW, square) == cv2.dilate(mask_HW, square))
    flat = np.bincount(mask_HW[flat_HW], minlength=256)
    regions = (flat >= 9) & (flat > FLAT_SHARE * pixels)
    meant = np.flatnonzero(known & pixels.astype(bool) | regions)
    far = (abs(np.arange(256)[:, None] - meant).min(axis=1, initial=256) > FAR) & ~known & ~regions
    stains = [int(value) for value in strange_values if not regions[value]]
    stain_HW = strange_HW & ~regions[mask_HW]
    if len(stains) > 1 and pixels[far].sum() >= FAR_SHARE * count and pixels[stains].sum() >= (1 - FLAT_SHARE) * count:
        lowest, highest = _around(mask_HW, stain_HW, SOFT_PX)
        between = stain_HW & (lowest < mask_HW) & (mask_HW < highest)
        if between.sum() >= BETWEEN_SHARE * stain_HW.sum():
            return "soft_edges", stains
    elif len(strange_values) >= HALO_VALUES and flat.sum() <= HALO_FLAT * count:
        lowest, highest = _around(mask_HW, strange_HW, HALO_PX)
        if (strange_HW & (lowest < highest)).sum() >= HALO_SHARE * count:
            return "jpeg_mask", [int(value) for value in strange_values]
    return "", []


def _around(
    mask_HW: NDArray[np.uint8], but_HW: NDArray[np.bool_], radius_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the lowest and the highest value around each pixel, pixels of ``but_HW`` not counted."""
    import cv2

    square = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    lowest = cv2.erode(np.where(but_HW, np.uint8(255), mask_HW), square)
    highest = cv2.dilate(np.where(but_HW, np.uint8(0), mask_HW), square)
    return np.asarray(lowest, np.uint8), np.asarray(highest, np.uint8)


def _known(info: DatasetInfo) -> NDArray[np.bool_]:
    known = np.zeros(256, bool)
    known[: info.num_classes] = True
    known[[info.ignore_id, 255]] = True  # 255: the one end of a 0/255 mask
    return known


def _ramped(mask_HW: NDArray[np.uint8], info: DatasetInfo) -> bool:
    """Tell whether nearly every border between ids far apart has a step between them, as interpolation draws it."""
    if info.num_classes < RAMP_CLASSES:
        return False
    stepped = sharp = 0
    for lines in (mask_HW, mask_HW.T):
        chosen = lines[:: max(1, len(lines) // RAMP_LINES)].astype(np.int16)
        left, middle, right = chosen[:, :-2], chosen[:, 1:-1], chosen[:, 2:]
        across = (abs(left - right) >= RAMP_JUMP) & (left < info.num_classes) & (right < info.num_classes)
        stepped += int((across & (np.minimum(left, right) < middle) & (middle < np.maximum(left, right))).sum())
        sharp += int((across & ((middle == left) | (middle == right))).sum())
    return stepped + sharp >= RAMP_MIN and stepped >= RAMP_SHARE * (stepped + sharp)


@dataclass(frozen=True)
class Together:
    """What all masks of a set say together.

    ``shift``: what was added to every id before it was stored, modulo 256. ``binary``: masks of 0 and 255 mean 0 and
    1. ``renumber``: ids as they are -> as they would be without a gap. ``unused``: class ids without a pixel; ``lost``:
    why that may be the doing of an offset, else "".
    """

    shift: Literal[-1, 0, 1] = 0
    binary: bool = False
    renumber: Mapping[int, int] | None = None
    unused: tuple[int, ...] = ()
    lost: str = ""


def read_together(info: DatasetInfo, seen: Mapping[frozenset[int], int], pixels: Mapping[int, int]) -> Together:
    """Read all masks together.

    Args:
        info: what dataset.yaml declares.
        seen: set of raw values that a mask holds -> number of masks that hold exactly these.
        pixels: raw value -> pixels in the whole set.
    """
    last = info.num_classes - 1
    classes = set(range(info.num_classes))
    union = frozenset().union(*seen)
    ids = union - {info.ignore_id}
    if _is_binary(info, seen, union):
        return Together(binary=True)
    if sum(seen.values()) >= SHIFT_MIN and info.num_classes > 2:
        if last + 1 in ids and ids <= {*classes, last + 1} - {0}:
            return Together(shift=1)
        wrapped = (info.ignore_id - 1) % 256  # where the ignore id went, and class 0 went to 255
        telling = info.ignore_id != 255 or wrapped in ids
        if telling and 255 in union and last not in ids - {wrapped} and ids - {255, wrapped} <= classes - {last}:
            return Together(shift=-1)
    strange = ids - classes
    unused = tuple(sorted(classes - ids)) if union else ()
    if strange and unused and len(ids) == info.num_classes:
        return Together(renumber={before: after for after, before in enumerate(sorted(ids)) if before != after})
    lost = ""
    ignored = pixels.get(255, 0) / max(1, sum(pixels.values()))
    if info.ignore_id == 255 and unused == (last,) and not strange and ignored >= LOST_SHARE and info.num_classes > 2:
        lost = (
            f"{100 * ignored:.0f}% of all pixels are 255, and class {last} is absent: if ids were stored one too low, "
            "class 0 is what looks ignored"
        )
    return Together(unused=unused, lost=lost)


def _is_binary(info: DatasetInfo, seen: Mapping[frozenset[int], int], union: frozenset[int]) -> bool:
    """Tell whether 255 means for the thing: it does where no mask holds anything else but 0, and, with two classes,
    where no mask contains both it and 1. Void regions occur beside both."""
    if 255 not in union:
        return False
    if union <= {0, 255, info.ignore_id} and (info.ignore_id == 255 or 255 not in range(info.num_classes)):
        return True
    marks = [values for values in seen if {0, 255} <= values]
    return info.num_classes == 2 and bool(marks) and not any(1 in values for values in seen if 255 in values)


def is_binary_mask(values: Collection[int], together: Together) -> bool:
    """Tell whether this mask is one of those whose 255 means 1."""
    return together.binary and 255 in values and 1 not in values


def ambiguous_shift(info: DatasetInfo, ids: Collection[int]) -> str:
    """Say that ids 0..K may be 1..K with void at 0, where that is so; it may as well be an undeclared class K."""
    if set(ids) - {info.ignore_id} == set(range(info.num_classes + 1)) and 255 not in ids:
        return f"or, if 0 means void here, take 1 off every id: 0 becomes {info.ignore_id}"
    return ""


def unshift(mask_HW: NDArray[np.uint8], shift: int, info: DatasetInfo) -> NDArray[np.uint8]:
    """Take ``shift`` off every id of a mask. Shifted up, the ignore id stayed what it was, or there was none."""
    if shift == 1:
        return np.where(mask_HW == info.ignore_id, mask_HW, mask_HW - np.uint8(1))
    return mask_HW + np.uint8(1)  # uint8: 255 becomes 0


def orientation(content: bytes) -> int:
    """Return the EXIF orientation of an encoded image, 1 (upright) where it has none."""
    if content[:4] not in TIFF_MAGIC and b"Exif" not in content[:65536] and b"eXIf" not in content:
        return 1  # asking PIL would decode a whole PNG
    with Image.open(BytesIO(content)) as image:
        found = image.getexif().get(0x0112, 1)
    return found if found in range(1, 9) else 1


def turn(mask_HW: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn a mask as a viewer turns an image of this EXIF orientation (EXIF 2.32, 4.6.5.A; 6: clockwise)."""
    turns: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        1: lambda mask: mask,
        2: np.fliplr,
        3: lambda mask: np.rot90(mask, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda mask: np.rot90(mask, -1),
        7: lambda mask: np.rot90(mask, 2).T,
        8: np.rot90,
    }
    return np.ascontiguousarray(turns[orientation](mask_HW))


def fits_turned(image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], orientation: int) -> bool | None:
    """Tell whether the mask must be turned to fit the upright image; None where that can't be told.

    Where sizes do not decide, the image's contrast along the mask's borders does.
    """
    turned = turn(mask_HW, orientation)
    size = image_HWC.shape[:2]
    if mask_HW.shape != size or turned.shape != size:
        return turned.shape == size
    contrast = _contrast(image_HWC)
    as_is, as_turned = (_along_borders(contrast, mask) for mask in (mask_HW, turned))
    if max(as_is, as_turned) == 0:
        return None
    if as_turned >= ALIGNED * as_is:
        return True
    return False if as_is >= ALIGNED * as_turned else None


def _contrast(image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey: NDArray[np.float32] = image_HWC.mean(2, dtype=np.float32)
    contrast = np.zeros_like(grey)
    contrast[:, 1:] += abs(np.diff(grey, axis=1))
    contrast[1:] += abs(np.diff(grey, axis=0))
    return contrast


def _along_borders(contrast: NDArray[np.float32], mask_HW: NDArray[np.uint8]) -> float:
    border = np.zeros(mask_HW.shape, bool)
    border[:, 1:] = mask_HW[:, 1:] != mask_HW[:, :-1]
    border[1:] |= mask_HW[1:] != mask_HW[:-1]
    return float(contrast[border].mean()) if border.any() else 0.0


def is_flat(image_HWC: NDArray[np.uint8]) -> bool:
    """Tell whether an image is all one colour, but for IMAGE_FLAT."""
    for pixels in (image_HWC[::16, ::16], image_HWC):  # a few pixels tell it of nearly every image
        spread = pixels.reshape(-1, image_HWC.shape[2])
        if (spread.max(0) - spread.min(0) > IMAGE_FLAT).any():
            return False
    return True


def repair_mask(
    look: MaskLook,
    kinds: Collection[str],
    *,
    info: DatasetInfo,
    together: Together,
    size: tuple[int, int],
    orientation: int = 1,
) -> NDArray[np.uint8] | None:
    """Return the ids of a mask without the issues ``kinds``, ``size`` (height, width), uint8; None where that can't be.

    Values along soft borders become those of the nearest pixel that has none; a 0/255 mask from JPEG is cut at 128; a
    mask off by a pixel is resized with nearest neighbour.
    """
    ids = look.by_colour if look.ids is None else look.ids
    if ids is None:
        return None
    if "jpeg_mask" in kinds:
        if not look.two_level:
            return None
        ids = np.where(ids >= 128, np.uint8(255), np.uint8(0))
    elif "soft_edges" in kinds:
        ids = _harden(ids, info)
    if {"jpeg_mask", "binary_0_255"} & set(kinds):
        ids = np.where(ids == 255, np.uint8(1), ids)
    if "shifted_ids" in kinds:
        ids = unshift(ids, together.shift, info)
    if "exif_rotated" in kinds:
        ids = turn(ids, orientation)
    if "off_by_a_pixel" in kinds:
        import cv2

        ids = np.asarray(cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    allowed = {*range(info.num_classes), info.ignore_id}
    return ids if ids.shape == size and set(np.unique(ids).tolist()) <= allowed else None


def _harden(mask_HW: NDArray[np.uint8], info: DatasetInfo) -> NDArray[np.uint8]:
    """Give the pixels along soft borders the value of the nearest pixel that is not soft."""
    import cv2

    pixels = np.bincount(mask_HW.ravel(), minlength=256)
    _, stains = find_stains(mask_HW, pixels, info)
    soft = np.isin(mask_HW, stains)
    padded = np.pad(mask_HW, 1, mode="edge").astype(np.int16)
    for before, after in ((padded[1:-1, :-2], padded[1:-1, 2:]), (padded[:-2, 1:-1], padded[2:, 1:-1])):
        low, high = np.minimum(before, after), np.maximum(before, after)
        soft |= (low < mask_HW) & (mask_HW < high)
    if soft.all():
        return mask_HW
    _, nearest = cv2.distanceTransformWithLabels(soft.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    value = np.zeros(int(nearest.max()) + 1, np.uint8)
    value[nearest[~soft]] = mask_HW[~soft]
    hard: NDArray[np.uint8] = value[nearest]
    return hard
