"""Distances of features are Mahalanobis distances by the covariance of scikit-learn's probabilistic PCA."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from segmill.anomaly.features import COORDINATES, feature_space


def drawn(images: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    common = np.random.default_rng(9).normal(size=(3, 20))
    return (random.normal(size=(images, 3)) @ common + 0.3 * random.normal(size=(images, 20)) + 4).astype(np.float32)


def test_the_distance_is_of_probabilistic_pca() -> None:
    seen, new = drawn(60), drawn(10, seed=1)
    space = feature_space(seen)
    scaled = (seen - space.mean_D) / space.scale_D
    pca = PCA(len(space.variance_R)).fit(scaled.astype(np.float64))
    centred = (new - space.mean_D) / space.scale_D
    expected = np.sqrt(np.einsum("nd,de,ne->n", centred, pca.get_precision(), centred) / seen.shape[1])
    assert space.distance(new) == pytest.approx(expected, rel=1e-3)


def test_usual_images_are_about_1_away_and_others_far_in_any_direction() -> None:
    space = feature_space(drawn(90))
    assert np.median(space.distance(drawn(200, seed=2))) == pytest.approx(1, rel=0.15)
    for direction in range(20):
        moved = drawn(1, seed=3)
        moved[0, direction] += 30
        assert space.distance(moved)[0] > 3


def test_coordinates_are_those_of_pca_and_usual_images_spread_by_1_in_each() -> None:
    seen, new = drawn(90), drawn(10, seed=1)
    space = feature_space(seen)
    place = space.coordinates(seen)
    assert place.shape == (90, COORDINATES)
    assert np.abs(place.mean(axis=0)).max() < 1e-3 and np.abs(place.std(axis=0, ddof=1) - 1).max() < 1e-2
    pca = PCA(COORDINATES, whiten=True).fit((seen - space.mean_D) / space.scale_D)
    expected = np.abs(pca.transform((new - space.mean_D) / space.scale_D))  # either sign is a direction
    assert np.abs(space.coordinates(new)) == pytest.approx(expected, abs=2e-2)
    assert feature_space(seen[:5]).coordinates(new).shape == (10, 1)


@pytest.mark.parametrize("images", [2, 3, 5])
def test_few_images_suffice_and_features_that_never_change_do_no_harm(images: int) -> None:
    seen = drawn(images)
    seen[:, 4] = 0
    space = feature_space(seen)
    assert np.isfinite(space.distance(drawn(4, seed=1))).all()
    assert (space.distance(seen + 50) > space.distance(seen)).all()
