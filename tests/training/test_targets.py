from __future__ import annotations

import numpy as np
import torch

from segmill.training.targets import SignedDistances, borders, presence, signed_distance

MASK = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 1, 255], [0, 0, 0, 0, 255]], np.uint8)


def test_signed_distance_by_hand() -> None:
    distance = signed_distance(MASK, num_classes=3, ignore_id=255)
    assert distance.dtype == np.float16 and distance.shape == (3, 3, 5)
    # Row 0: class 0 is 3, 2, 1 px from class 1, so -2, -1, 0; class 1 is 1 and 2 px from class 0 in its row, but
    # sqrt(2) + ... : (0, 4) is nearest to (2, 3), sqrt(5), or (0, 2), 2.
    np.testing.assert_allclose(distance[0, 0], [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(distance[1, 0], [3, 2, 1, 0, -1])
    # (2, 0) is nearest to (1, 3): sqrt(10).
    np.testing.assert_allclose(distance[0, 2, 0], 1 - np.sqrt(10), atol=2e-3)
    assert not distance[2].any()  # the mask lacks it


def test_unlabelled_pixels_border_on_nothing() -> None:
    mask = np.array([[0, 255, 255, 255, 1]], np.uint8)
    distance = signed_distance(mask, num_classes=2, ignore_id=255)
    assert distance[0, 0, 0] == -3 and distance[1, 0, 4] == -3
    assert not signed_distance(np.zeros((2, 2), np.uint8), num_classes=2, ignore_id=255).any()
    np.testing.assert_array_equal(SignedDistances(2, 255)(mask), distance)


def test_presence_by_hand() -> None:
    masks = torch.from_numpy(np.stack([MASK, np.full_like(MASK, 255)]))
    assert presence(masks, num_classes=3, ignore_id=255).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_borders_by_hand() -> None:
    found = borders(torch.from_numpy(MASK)[None], ignore_id=255)
    assert found[0].long().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
