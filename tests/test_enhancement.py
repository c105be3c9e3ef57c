from __future__ import annotations

import numpy as np
import pytest

from segmill.enhancement import enhance, enhance_all


def dull() -> np.ndarray:
    """A reddish image of little contrast."""
    light = np.random.default_rng(0).integers(0, 12, (64, 64, 1), np.uint8)
    return np.array([130, 110, 90], np.uint8) + light


def test_nothing_on_is_the_image_itself() -> None:
    image = dull()
    assert enhance(image, grayscale=False, clahe=0) is image
    batch = image[None]
    assert enhance_all(batch, grayscale=False, clahe=0) is batch


def test_grayscale_is_the_luma_in_every_channel() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]]], np.uint8)
    grey = enhance(image, grayscale=True, clahe=0)
    assert grey.tolist() == [[[value] * 3 for value in (76, 150, 29, 7)]]  # 0.299 R + 0.587 G + 0.114 B, rounded


@pytest.mark.parametrize("grayscale", [False, True])
def test_clahe_spreads_the_lightness_and_leaves_the_original(grayscale: bool) -> None:
    image = dull()
    before = image.copy()
    enhanced = enhance(image, grayscale=grayscale, clahe=4.0)
    np.testing.assert_array_equal(image, before)
    assert (enhanced.shape, enhanced.dtype) == ((64, 64, 3), np.uint8)
    assert enhanced.mean(axis=2).std() > 2 * image.mean(axis=2).std()
    assert bool(np.ptp(enhanced, axis=2).max() == 0) is grayscale


def test_a_batch_is_its_images_one_by_one() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
    batch.setflags(write=False)  # as a packed split gives them
    together = enhance_all(batch, grayscale=False, clahe=2.0)
    for one, image in zip(together, batch, strict=True):
        np.testing.assert_array_equal(one, enhance(image, grayscale=False, clahe=2.0))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 200)])
def test_images_smaller_than_the_tiles_or_no_multiple_of_them_go_too(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert enhance(image, grayscale=False, clahe=2.0).shape == (*size, 3)
