"""Pictures for the pages: classes tinted over an image, errors marked, numbered boxes, pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width in px

WRONG = (255, 45, 96)
UNLABELLED = (128, 128, 128)
NUMBER = (255, 255, 255)
GAP_PX = 4


def palette(colors: Iterable[str]) -> Pixels:
    """Return K x 3 uint8 RGB of colours written as "#rrggbb"."""
    return np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in colors], np.uint8)


def overlay(image_HWC: Pixels, ids_HW: Pixels, colors_K3: Pixels, ignore_id: int) -> Pixels:
    """Tint each class with its colour over the grey image. A black class (background) is not tinted."""
    grey = image_HWC.mean(axis=2, keepdims=True).repeat(3, axis=2)
    known = ids_HW != ignore_id
    tint = np.full_like(grey, UNLABELLED)
    tint[known] = colors_K3[ids_HW[known]]
    strength = np.where(tint.any(axis=2, keepdims=True), 0.6, 0.0)
    blended: Pixels = (grey * (1 - strength) + tint * strength).astype(np.uint8)
    return blended


def errors(image_HWC: Pixels, target_HW: Pixels, prediction_HW: Pixels, ignore_id: int) -> Pixels:
    """Mark wrong pixels over the dimmed grey image; unlabelled ones are flat grey."""
    picture: Pixels = (image_HWC.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.55).astype(np.uint8)
    picture[(target_HW != prediction_HW) & (target_HW != ignore_id)] = WRONG
    picture[target_HW == ignore_id] = UNLABELLED
    return picture


def image_above_classes(image_HWC: Pixels, ids_HW: Pixels, colors_K3: Pixels, ignore_id: int) -> Image.Image:
    """Return the image with, below it, the same image tinted by class."""
    return Image.fromarray(np.vstack([image_HWC, overlay(image_HWC, ids_HW, colors_K3, ignore_id)]))


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Put pictures into a grid of equal cells, ``GAP_PX`` apart, on white."""
    width, height = (max(getattr(picture, side) for row in rows for picture in row) for side in ("width", "height"))
    columns = max(map(len, rows))
    whole = Image.new("RGB", (columns * (width + GAP_PX) - GAP_PX, len(rows) * (height + GAP_PX) - GAP_PX), "white")
    for place, row in enumerate(rows):
        for column, picture in enumerate(row):
            whole.paste(picture, (column * (width + GAP_PX), place * (height + GAP_PX)))
    return whole


def outlined(picture: Image.Image, boxes: Iterable[Box]) -> Image.Image:
    """Draw a frame around each box, in place; return the picture."""
    for top, left, height, width in boxes:
        corners = (left - 2, top - 2, left + width + 1, top + height + 1)
        ImageDraw.Draw(picture).rectangle(corners, outline=WRONG)
    return picture


def numbered(picture: Image.Image, boxes: Iterable[Box], scale: float) -> Image.Image:
    """Draw a frame with its number, from 1, around each box, in place; ``scale``: px of the picture per px of a box."""
    draw = ImageDraw.Draw(picture)
    for number, (top, left, height, width) in enumerate(boxes, 1):
        x, y = scale * left, scale * top
        draw.rectangle((x, y, scale * (left + width) - 1, scale * (top + height) - 1), outline=NUMBER, width=2)
        corner = (min(x, picture.width - 16), min(y, picture.height - 18))
        draw.rectangle((*corner, corner[0] + 15, corner[1] + 17), fill=NUMBER)
        draw.text((corner[0] + 4, corner[1] + 1), str(number), fill=(0, 0, 0), font_size=14)
    return picture


def resized(pixels_HWC: Pixels, longest_px: int) -> tuple[Image.Image, float]:
    """Return the picture with its longer side at ``longest_px``, and the factor; enlarged pixels keep their edges."""
    picture = Image.fromarray(pixels_HWC)
    scale = longest_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST), scale


def thumbnail(pixels: Pixels, longest_px: int) -> Image.Image:
    """Return HW, HW1 or HWC pixels as a picture of at most ``longest_px``; small ones keep their size."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    picture.thumbnail((longest_px, longest_px))
    return picture


def as_uri(picture: Image.Image, quality: int) -> str:
    """Return the picture as a JPEG inside a data URI."""
    content = BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=quality, subsampling="4:4:4")  # borders of classes are colours
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
