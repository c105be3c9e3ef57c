from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segmill.data.ingest.formats.painting import decode_region
from segmill.errors import InputError


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        ({"size": [9, 9], "counts": [81]}, "its outline is for size"),
        ({"size": [3, 4], "counts": [0, 13]}, "its RLE covers 13 px, the image has 12"),
        ({"size": [3, 4], "counts": [13, -1]}, "other counts than whole numbers"),
        ({"size": [3, 4], "counts": "o"}, "ends within a number"),
        ({"size": [3, 4], "counts": "\x01"}, "holds what is no RLE"),
        ({"size": [3, 4], "counts": "o" * 1000}, "holds what is no RLE"),
        ([[0, 0, 1, 1]], "3 or more pairs"),
        ([[0, 0, float("nan"), 1, 1, 1]], "px away"),
        ([["a"] * 6], "other things than numbers"),
        ([[0, 0, 4, 3] * 1000], "more than 100 times around"),
        (5, "its outline is for size int"),
    ],
)
def test_hostile_outlines_never_reach_c_code(outline: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        decode_region(outline, 3, 4)


def test_compressed_rle_is_what_pycocotools_writes() -> None:
    pixels = (np.random.default_rng(3).random((97, 61)) < 0.3).astype(np.uint8)
    pixels[40:80] = 1
    rle = coco_mask.encode(np.asfortranarray(pixels))
    patch = decode_region({"size": [97, 61], "counts": rle["counts"].decode()}, 97, 61)
    painted = np.zeros((97, 61), np.uint8)
    patch.paint(painted, 1)
    np.testing.assert_array_equal(painted, pixels)
    assert patch.area == pixels.sum()


def test_polygons_filled_in_their_part_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(4)
    for _ in range(300):
        corners = random.integers(3, 8)
        scale = 10.0 if random.random() < 0.5 else 1.0
        outline = [(np.round(random.uniform(0, 30, 2 * corners) * scale) / scale).tolist() for _ in range(2)]
        whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, 24, 28)))
        painted = np.zeros((24, 28), np.uint8)
        decode_region(outline, 24, 28).paint(painted, 1)
        np.testing.assert_array_equal(painted, whole)


def test_a_polygon_outside_the_image_covers_nothing() -> None:
    assert decode_region([[29, 1, 33, 1, 33, 5]], 24, 28).area == 0
