"""Parts of a split: every image once, whole batches, even work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmill.ensembling.parts import cut, memory_bytes
from segmill.ensembling.predict import PIXELS_AT_ONCE, batches

SIDES = st.sampled_from([300, 700, 1200])


LISTS = st.lists(st.tuples(SIDES, SIDES), max_size=40)


def batch_sizes(shapes: list[tuple[int, int]], channels: int = 0) -> list[int]:
    return [len(stack) for stack in batches(np.empty((*shape, channels), np.uint8) for shape in shapes)]


@given(LISTS, LISTS, st.integers(1, 9))
def test_every_image_once_in_the_batches_of_its_split(
    first: list[tuple[int, int]], second: list[tuple[int, int]], most: int
) -> None:
    parts = cut([first, second], most)
    assert len(parts) <= most and all(any(part) for part in parts)
    for number, shapes in enumerate((first, second)):
        images = [part[number] for part in parts]
        assert [index for some in images for index in some] == list(range(len(shapes)))
        sizes = [size for some in images for size in batch_sizes([shapes[index] for index in some])]
        assert sizes == batch_sizes(shapes)


@given(LISTS, LISTS, st.integers(1, 9))
def test_no_part_has_two_batches_more_than_its_share(
    first: list[tuple[int, int]], second: list[tuple[int, int]], most: int
) -> None:
    pixels = [[height * width for height, width in shapes] for shapes in (first, second)]
    largest_batch = max([PIXELS_AT_ONCE, *pixels[0], *pixels[1]])
    share = sum(map(sum, pixels)) / most
    for part in cut([first, second], most):
        own = sum(some[index] for some, images in zip(pixels, part, strict=True) for index in images)
        assert own < share + 2 * largest_batch


@pytest.mark.parametrize(("images", "most", "expected"), [
    (7, 3, [2, 3, 2]), (5, 2, [2, 3]), (5, 4, [1, 1, 2, 1]), (3, 8, [1, 1, 1]), (4, 1, [4]), (0, 3, []),
])  # fmt: skip
def test_parts_of_images_that_are_a_batch_each(images: int, most: int, expected: list[int]) -> None:
    assert [len(part) for (part,) in cut([[(1024, 1024)] * images], most)] == expected


def test_images_are_batched_by_their_shape_alone() -> None:
    shapes = [(500, 500)] * 5 + [(400, 500)] * 7 + [(1200, 1200)] * 2
    assert batch_sizes(shapes, channels=3) == batch_sizes(shapes) == [4, 1, 5, 2, 1, 1]


def test_memory_grows_with_images_classes_and_members() -> None:
    def asked(side_px: int, classes: int = 2, maps: int = 3, weights: int = 10**6) -> int:
        return memory_bytes([(side_px, side_px)], classes=classes, maps=maps, weights_bytes=weights)

    least = asked(64)
    assert asked(1024) == least < asked(2048)
    assert min(asked(64, classes=20), asked(64, maps=9), asked(64, weights=10**9)) > least
