"""How a training sample comes to the size that training sees: cropped, then stretched, fitted or cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError


@dataclass(frozen=True)
class Resizing:
    """What is asked for. Crop first: pixels off at top, bottom, left, right. Then to ``size``, height and width in px.

    ``stretch`` scales each side by itself. ``fit`` keeps the aspect and fills up with black, ignored pixels around.
    ``tile`` cuts an image at its own scale into pieces that overlap by ``overlap_px``, the last of a row or column
    flush with the border; where the image is smaller it is filled up below and at the right. ``size`` None keeps each
    image's own.
    """

    size: tuple[int, int] | None = None
    resize: Literal["stretch", "fit", "tile"] = "stretch"
    overlap_px: int = 0
    border_crop_px: tuple[int, int, int, int] = (0, 0, 0, 0)


class Piece(NamedTuple):
    """A part of a sample: image HWC uint8, mask HW uint8.

    ``top`` and ``left`` say where it was cut from the original, in px; ``padding_px`` counts what was filled up.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    top: int
    left: int
    padding_px: int


def pieces(image: NDArray[np.uint8], mask: NDArray[np.uint8], how: Resizing, *, ignore_id: int) -> Iterator[Piece]:
    """Yield what training gets of one sample: a single piece, unless it is cut into tiles.

    Images are scaled by area when shrinking, else linearly, masks by nearest neighbour. InputError where nothing is
    left after cropping.
    """
    top, _, left, _ = how.border_crop_px
    height, width = _cropped(mask.shape[0], mask.shape[1], how)
    image, mask = (pixels[top : top + height, left : left + width] for pixels in (image, mask))
    if how.size is None:
        yield Piece(image, mask, top, left, 0)
    elif how.resize == "stretch":
        yield Piece(*_scale(image, mask, how.size), top, left, 0)
    elif how.resize == "fit":
        scale = min(how.size[0] / height, how.size[1] / width)
        inner = (_scaled(height, scale), _scaled(width, scale))
        middle = ((how.size[0] - inner[0]) // 2, (how.size[1] - inner[1]) // 2)
        yield Piece(
            *_pad(*_scale(image, mask, inner), how.size, middle, ignore_id), top, left, _missing(inner, how.size)
        )
    else:
        for y in _starts(height, how.size[0], how.overlap_px):
            for x in _starts(width, how.size[1], how.overlap_px):
                window = slice(y, y + how.size[0]), slice(x, x + how.size[1])
                part, labels = image[window], mask[window]
                missing = _missing(labels.shape, how.size)
                yield Piece(*_pad(part, labels, how.size, (0, 0), ignore_id), top + y, left + x, missing)


def pixels_of(height: int, width: int, how: Resizing) -> int:
    """Return how many pixels the pieces of an image of this size have together. InputError as ``pieces``."""
    height, width = _cropped(height, width, how)
    if how.size is None:
        return height * width
    count = 1
    if how.resize == "tile":
        count = len(_starts(height, how.size[0], how.overlap_px)) * len(_starts(width, how.size[1], how.overlap_px))
    return count * how.size[0] * how.size[1]


def _cropped(height: int, width: int, how: Resizing) -> tuple[int, int]:
    top, bottom, left, right = how.border_crop_px
    if top + bottom >= height or left + right >= width:
        raise InputError(
            f"prepare.border_crop_px {list(how.border_crop_px)} (top, bottom, left, right) leaves nothing of an image "
            f"of {height} x {width} px (height x width); lower it"
        )
    return height - top - bottom, width - left - right


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where the tiles of one axis begin."""
    return [*range(0, length - size, size - overlap), length - size] if length > size else [0]


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _missing(have: tuple[int, ...], size: tuple[int, int]) -> int:
    return size[0] * size[1] - have[0] * have[1]


def _pad(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], size: tuple[int, int], at: tuple[int, int], ignore_id: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lay image and mask ``at`` top and left of a black, ignored canvas of ``size``."""
    if mask.shape == size:
        return image, mask
    canvas, labels = np.zeros((*size, image.shape[2]), np.uint8), np.full(size, ignore_id, np.uint8)
    window = slice(at[0], at[0] + mask.shape[0]), slice(at[1], at[1] + mask.shape[1])
    canvas[window], labels[window] = image, mask
    return canvas, labels


def _scale(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    import cv2

    if mask.shape == size:
        return image, mask
    height, width = size
    shrinks = height <= mask.shape[0] and width <= mask.shape[1]
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image, cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
