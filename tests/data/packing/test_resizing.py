from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmill.data.packing.resizing import Piece, Resizing, pieces, pixels_of
from segmill.errors import InputError

IGNORE = 9


def sample(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel its own number, from 0 in reading order; image and mask the same."""
    mask = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.repeat(mask[:, :, None], 3, axis=2), mask


def made(height: int, width: int, how: Resizing) -> list[Piece]:
    found = list(pieces(*sample(height, width), how, ignore_id=IGNORE))
    assert sum(piece.mask.size for piece in found) == pixels_of(height, width, how)
    return found


def test_crop_counts_from_top_bottom_left_right() -> None:
    (piece,) = made(4, 5, Resizing(border_crop_px=(1, 0, 2, 1)))
    assert piece.mask.tolist() == [[7, 8], [12, 13], [17, 18]]
    np.testing.assert_array_equal(piece.image[:, :, 1], piece.mask)
    assert (piece.top, piece.left, piece.padding_px) == (1, 2, 0)


def test_a_crop_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"border_crop_px \[2, 2, 0, 0\] .* leaves nothing of an image of 4 x 5 px"):
        made(4, 5, Resizing(border_crop_px=(2, 2, 0, 0)))
    with pytest.raises(InputError, match="leaves nothing"):
        pixels_of(5, 4, Resizing(border_crop_px=(0, 0, 3, 1)))


def test_stretch_takes_means_of_the_image_and_nearest_ids_of_the_mask() -> None:
    image = np.array([[0, 10, 40, 50], [20, 30, 60, 70]], np.uint8)[:, :, None].repeat(3, axis=2)
    mask = np.array([[1, 1, 2, 2], [1, 1, 2, 2]], np.uint8)
    (piece,) = pieces(image, mask, Resizing((1, 2)), ignore_id=IGNORE)
    assert piece.image[:, :, 0].tolist() == [[15, 55]]
    assert piece.mask.tolist() == [[1, 2]]


def test_fit_keeps_the_aspect_and_fills_up_around() -> None:
    image, mask = np.full((2, 4, 3), 50, np.uint8), np.full((2, 4), 1, np.uint8)
    (piece,) = pieces(image, mask, Resizing((8, 8), "fit"), ignore_id=IGNORE)  # 2 x 4 becomes 4 x 8
    assert (piece.mask[2:6] == 1).all() and (piece.mask[[0, 1, 6, 7]] == IGNORE).all()
    assert (piece.image[2:6] == 50).all() and (piece.image[[0, 1, 6, 7]] == 0).all()
    assert piece.padding_px == 4 * 8
    (tall,) = pieces(image.transpose(1, 0, 2), mask.T, Resizing((2, 3), "fit"), ignore_id=IGNORE)
    assert tall.mask.tolist() == [[IGNORE, 1, IGNORE]] * 2  # 4 x 2 shrinks to 2 x 1


def test_tiles_overlap_and_the_last_lies_flush_with_the_border() -> None:
    found = made(4, 10, Resizing((4, 4), "tile", overlap_px=1))
    assert [(piece.top, piece.left) for piece in found] == [(0, 0), (0, 3), (0, 6)]
    _, mask = sample(4, 10)
    for piece in found:
        np.testing.assert_array_equal(piece.mask, mask[:, piece.left : piece.left + 4])
        assert piece.padding_px == 0
    exact = made(4, 8, Resizing((2, 4), "tile"))
    assert [(piece.top, piece.left) for piece in exact] == [(0, 0), (0, 4), (2, 0), (2, 4)]


def test_tiles_of_a_cropped_image_know_their_place_in_the_original() -> None:
    found = made(5, 9, Resizing((4, 4), "tile", border_crop_px=(1, 0, 2, 0)))
    assert [(piece.top, piece.left) for piece in found] == [(1, 2), (1, 5)]
    assert found[1].mask[0, 0] == 9 + 5


def test_an_image_smaller_than_a_tile_is_filled_up() -> None:
    (piece,) = made(2, 3, Resizing((3, 4), "tile"))
    assert piece.mask.tolist() == [[0, 1, 2, IGNORE], [3, 4, 5, IGNORE], [IGNORE] * 4]
    assert piece.image[:, :, 2].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0], [0] * 4]
    assert piece.padding_px == 6
    low = made(2, 6, Resizing((3, 4), "tile"))  # smaller in one direction, larger in the other
    assert [(piece.left, piece.padding_px) for piece in low] == [(0, 4), (2, 4)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, Resizing]:
    """Height and width of an image, and what is asked for that leaves something of it."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    crop = tuple(draw(st.integers(0, (side - 1) // 2)) for side in (height, height, width, width))
    size = draw(st.one_of(st.none(), st.tuples(st.integers(1, 20), st.integers(1, 20))))
    overlap = draw(st.integers(0, min(size) - 1)) if size else 0
    return height, width, Resizing(size, draw(st.sampled_from(["stretch", "fit", "tile"])), overlap, crop)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=cases(), seed=st.integers(0, 99))
def test_sizes_labels_and_padding_of_any_resizing(case: tuple[int, int, Resizing], seed: int) -> None:
    height, width, how = case
    random = np.random.default_rng(seed)
    image = random.integers(1, 255, (height, width, 3), np.uint8)  # 0 is what fills up
    mask = random.integers(0, 5, (height, width), np.uint8)
    top, bottom, left, right = how.border_crop_px
    inside = mask[top : height - bottom, left : width - right]

    found = list(pieces(image, mask, how, ignore_id=IGNORE))

    assert sum(piece.mask.size for piece in found) == pixels_of(height, width, how)
    for piece in found:
        assert piece.image.shape == (*piece.mask.shape, 3)
        assert piece.mask.shape == (how.size or inside.shape)
        assert set(np.unique(piece.mask)) <= {*np.unique(inside).tolist(), IGNORE}
        filled_up = piece.mask == IGNORE
        assert filled_up.sum() == piece.padding_px
        assert not piece.image[filled_up].any()
        assert piece.image[~filled_up].all()
    if how.size is None or how.resize == "stretch":
        assert [piece.padding_px for piece in found] == [0]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases())
def test_tiles_laid_back_at_their_places_make_the_image_again(case: tuple[int, int, Resizing]) -> None:
    height, width, how = case
    how = dataclasses.replace(how, size=how.size or (3, 3), resize="tile", overlap_px=how.overlap_px if how.size else 1)
    assert how.size is not None
    top, bottom, left, right = how.border_crop_px
    mask = (np.arange(height * width) % 200).astype(np.uint8).reshape(height, width)
    image = np.repeat(mask[:, :, None], 3, axis=2)
    canvas = np.full((height + how.size[0], width + how.size[1]), 255, np.uint8)

    for piece in pieces(image, mask, how, ignore_id=255):
        here = canvas[piece.top : piece.top + how.size[0], piece.left : piece.left + how.size[1]]
        here[piece.mask != 255] = piece.mask[piece.mask != 255]

    kept = slice(top, height - bottom), slice(left, width - right)
    np.testing.assert_array_equal(canvas[kept], mask[kept])
    canvas[kept] = 255
    assert (canvas == 255).all(), "nothing outside of the crop"
