"""Pictures of the pages: what is tinted, what is marked, and sheets of several."""

from __future__ import annotations

import numpy as np
from PIL import Image

from segmill.reports.pictures import GAP_PX, UNLABELLED, WRONG, errors, overlay, resized, sheet

COLORS = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)


def test_errors_are_marked_and_unlabelled_pixels_are_grey() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    target, prediction = np.array([[0, 0, 255]], np.uint8), np.array([[0, 1, 1]], np.uint8)
    picture = errors(image, target, prediction, 255)
    assert picture[0].tolist() == [[55, 55, 55], list(WRONG), list(UNLABELLED)]


def test_black_classes_leave_the_image_as_it_is() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = overlay(image, np.array([[0, 1]], np.uint8), COLORS, 255)
    assert picture[0].tolist() == [[100, 100, 100], [160, 100, 40]]


def test_a_sheet_has_equal_cells_on_white() -> None:
    red, blue = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (2, 5), "blue")
    whole = np.asarray(sheet([[red, blue], [blue]]))
    assert whole.shape == (2 * 5 + GAP_PX, 2 * 4 + GAP_PX, 3)
    assert whole[0, 0].tolist() == [255, 0, 0] and whole[0, 4 + GAP_PX].tolist() == [0, 0, 255]
    assert whole[5 + GAP_PX, 0].tolist() == [0, 0, 255] and whole[-1, -1].tolist() == [255, 255, 255]


def test_a_picture_is_reduced_or_enlarged_to_its_longer_side() -> None:
    large, scale = resized(np.zeros((100, 50, 3), np.uint8), 20)
    assert (large.size, scale) == ((10, 20), 0.2)
    small = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    picture, scale = resized(small, 8)
    assert scale == 4 and np.unique(np.asarray(picture)).tolist() == [0, 255], "enlarged pixels keep their edges"
