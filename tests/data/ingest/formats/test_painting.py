from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from segmill.data.ingest.formats.painting import ObjectMask, decode_region, paint_objects
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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mask_HW=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.booleans()))
def test_any_mask_comes_back_from_both_kinds_of_rle(mask_HW: np.ndarray) -> None:
    height, width = mask_HW.shape
    column_by_column = mask_HW.T.ravel()
    borders = np.flatnonzero(np.diff(column_by_column)) + 1
    runs = np.diff([0, *borders, column_by_column.size]).tolist()
    counts = [0, *runs] if column_by_column[0] else runs
    compressed = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))["counts"].decode()

    for outline in (counts, compressed):
        found = decode_region({"size": [height, width], "counts": outline}, height, width)
        painted_HW = np.zeros((height, width), np.uint8)
        found.paint(painted_HW, 7)
        np.testing.assert_array_equal(painted_HW, 7 * mask_HW)
        assert found.area == mask_HW.sum()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    counts=st.one_of(st.text("0123456789:;<=>?@PQRSTo~", max_size=12), st.lists(st.integers(-3, 40), max_size=12)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_counts_are_an_object_inside_the_image_or_refused(counts: str | list[int], size: tuple[int, int]) -> None:
    try:
        found = decode_region({"size": list(size), "counts": counts}, *size)
    except InputError:
        return
    assert found.top + found.height <= size[0]
    assert found.left + found.width <= size[1]
    assert 0 <= found.area <= size[0] * size[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(masks=st.lists(arrays(np.bool_, (6, 8), elements=st.booleans()), min_size=1, max_size=5))
def test_a_pixel_belongs_to_the_smallest_object_over_it(masks: list[np.ndarray]) -> None:
    painted_HW = np.zeros((6, 8), np.uint8)
    paint_objects(painted_HW, [(ObjectMask.of(mask), number) for number, mask in enumerate(masks, 1)])

    for row in range(6):
        for column in range(8):
            over = [number for number, mask in enumerate(masks, 1) if mask[row, column]]
            area = {number: masks[number - 1].sum() for number in over}
            smallest = [number for number in over if area[number] == min(area.values())]
            assert painted_HW[row, column] == (smallest[-1] if smallest else 0)
