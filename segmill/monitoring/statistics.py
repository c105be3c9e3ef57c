"""What is kept of an image instead of it: brightness, sharpness, colours, size, class areas, confidence, embedding.

Numpy only. The cost does not grow with the image: pixels are taken on a grid, sharpness from tiles at full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

GRID_PX = 128  # colours and brightness are of at most so many rows and columns of pixels
AREAS_GRID_PX = 256
TILE_PX = 64
TILES = 4  # in each direction
COLORS = 64  # bins of the colour histogram: 4 levels each of red, green and blue
AREA = "area."  # before the name of a class
EMBEDDING = "embedding."  # before the number of a coordinate, from 1 on
LUMA_3 = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class Scale:
    """What a statistic is, and the range that its histogram covers; what is beyond counts in the bin at that end."""

    title: str
    unit: str
    low: float
    high: float


SCALES: Mapping[str, Scale] = {
    "brightness": Scale("brightness", "mean luma, 0 to 1", 0.0, 1.0),
    "contrast": Scale("contrast", "standard deviation of luma", 0.0, 0.5),
    "saturation": Scale("saturation", "mean of max - min of RGB, 0 to 1", 0.0, 1.0),
    "sharpness": Scale("sharpness", "log10 of 1 + variance of the Laplacian", 0.0, 6.0),
    "size": Scale("size", "log2 of the number of pixels", 0.0, 32.0),
    "aspect": Scale("width to height", "log2 of width / height", -4.0, 4.0),
    "confidence": Scale("confidence", "mean of the largest probability, 0 to 1", 0.0, 1.0),
}


def scale_of(name: str) -> Scale:
    """Return the scale of a statistic. Raises KeyError for a name that is none."""
    if name.startswith(AREA):
        return Scale(f"area of {name.removeprefix(AREA)}", "share of the pixels, 0 to 1", 0.0, 1.0)
    if name.startswith(EMBEDDING):
        number = name.removeprefix(EMBEDDING)
        return Scale(f"embedding {number}", f"place along direction {number} of the features, in deviations", -8.0, 8.0)
    return SCALES[name]


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """What is kept of one image.

    Attributes:
        values: by name of the statistic; NaN where it has none, as the sharpness of an image 2 px high.
        colors: share of the pixels in each bin of the colour histogram, ``COLORS`` values that sum to 1.
    """

    values: dict[str, float]
    colors: NDArray[np.float64]


def image_statistics(
    image_HWC: Pixels,
    ids_HW: Pixels,
    class_names: Sequence[str],
    *,
    confidence: float = math.nan,
    embedding: Sequence[float] = (),
) -> ImageStatistics:
    """Return what is kept of an image HWC uint8, C = 3, and of its classes.

    Args:
        ids_HW: predicted or labelled class ids; those beyond ``class_names`` (unlabelled pixels) count in no area.
        confidence: mean over pixels of the largest probability, NaN where nothing was predicted.
        embedding: ``anomaly.features.FeatureSpace.coordinates`` of the image, none where the version has no such space.
    """
    height, width = image_HWC.shape[:2]
    some_CHW = np.ascontiguousarray(_on_grid(image_HWC, GRID_PX).transpose(2, 0, 1))
    luma_HW = np.tensordot(LUMA_3 / 255, some_CHW.astype(np.float32), 1)
    red_HW, green_HW, blue_HW = some_CHW
    spread_HW = np.maximum(np.maximum(red_HW, green_HW), blue_HW) - np.minimum(np.minimum(red_HW, green_HW), blue_HW)
    values = {
        "brightness": float(luma_HW.mean(dtype=np.float64)),
        "contrast": float(luma_HW.std(dtype=np.float64)),
        "saturation": float(spread_HW.mean()) / 255,
        "sharpness": _sharpness(image_HWC[:, :, 1]),
        "size": math.log2(height * width),
        "aspect": math.log2(width / height),
        "confidence": confidence,
    }
    values |= {f"{EMBEDDING}{number}": float(place) for number, place in enumerate(embedding, 1)}
    counts = np.bincount(_on_grid(ids_HW, AREAS_GRID_PX).ravel(), minlength=len(class_names))[: len(class_names)]
    total = int(counts.sum())
    for name, count in zip(class_names, counts.tolist(), strict=True):
        values[f"{AREA}{name}"] = count / total if total else math.nan
    return ImageStatistics(values, _colors(some_CHW))


def _on_grid(array: Pixels, most_px: int) -> Pixels:
    """Return every n-th row and column, so that there are at most ``most_px`` of each."""
    rows, columns = (-(-side // most_px) for side in array.shape[:2])
    return array[::rows, ::columns]


def _sharpness(green_HW: Pixels) -> float:
    """Return log10(1 + variance of the Laplacian), of the channel that has most of the luminance."""
    if min(green_HW.shape) < 3:
        return math.nan
    tile_NHW = np.stack(list(_tiles(green_HW))).astype(np.int16)
    middle_NHW = tile_NHW[:, 1:-1, 1:-1]
    laplacian_NHW = (
        tile_NHW[:, :-2, 1:-1] + tile_NHW[:, 2:, 1:-1] + tile_NHW[:, 1:-1, :-2] + tile_NHW[:, 1:-1, 2:] - 4 * middle_NHW
    )
    return math.log10(1 + float(laplacian_NHW.var(dtype=np.float64)))


def _tiles(channel_HW: Pixels) -> Iterator[Pixels]:
    """Yield tiles of one size, spread evenly over the image; a small image is one tile."""
    places = []
    for side in channel_HW.shape:
        room = max(side - TILE_PX, 0)
        places.append(np.unique(np.linspace(0, room, TILES).astype(int)))
    for top in places[0]:
        for left in places[1]:
            yield channel_HW[top : top + TILE_PX, left : left + TILE_PX]


def _colors(image_CHW: Pixels) -> NDArray[np.float64]:
    red_HW, green_HW, blue_HW = image_CHW >> 6
    bin_HW = (red_HW << 4) | (green_HW << 2) | blue_HW
    shares: NDArray[np.float64] = np.bincount(bin_HW.ravel(), minlength=COLORS) / bin_HW.size
    return shares
