"""Mahalanobis distance of an image's features from those of usual images, with a covariance few images suffice for.

Features are the means and standard deviations of each channel of each stage of a member's encoder. Their covariance is
that of probabilistic principal component analysis (Tipping and Bishop, 1999): some directions with a variance each, and
one variance for all others. So what no usual image shows, in whatever direction, counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

DIRECTIONS = 16
IMAGES_PER_DIRECTION = 3
COORDINATES = 8
LEAST_SCALE = 0.1  # of the mean scale of all features: a channel that is nearly always 0 must not decide alone


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Where the features of usual images lie.

    Attributes:
        mean_D, scale_D: of each feature; distances are measured of (feature - mean) / scale.
        directions_RD: orthonormal, with ``variance_R``; R may be 0.
        rest: the variance in every other direction.
    """

    mean_D: Array
    scale_D: Array
    directions_RD: Array
    variance_R: Array
    rest: float

    def coordinates(self, features_BD: Array) -> Array:
        """Return each image's place along the first directions, ``COORDINATES`` or R if fewer, in standard deviations.

        Usual images have a mean of 0 and a variance of 1 in each.
        """
        centred_BD = ((features_BD - self.mean_D) / self.scale_D).astype(np.float64)
        along_BE = centred_BD @ self.directions_RD[:COORDINATES].T.astype(np.float64)
        return (along_BE / np.sqrt(self.variance_R[:COORDINATES])).astype(np.float32)

    def distance(self, features_BD: Array) -> NDArray[np.float64]:
        """Return the Mahalanobis distance of each image, divided by the square root of D: about 1 for usual ones."""
        centred_BD = ((features_BD - self.mean_D) / self.scale_D).astype(np.float64)
        along_BR = centred_BD @ self.directions_RD.T.astype(np.float64)
        square_B = (along_BR**2 / self.variance_R).sum(axis=1)
        square_B += np.maximum((centred_BD**2).sum(axis=1) - (along_BR**2).sum(axis=1), 0) / self.rest
        return np.asarray(np.sqrt(square_B / centred_BD.shape[1]))


def feature_space(features_ND: Array) -> FeatureSpace:
    """Return where the features of N usual images lie, N 2 or more."""
    images, size = features_ND.shape
    mean_D, spread_D = features_ND.mean(axis=0), features_ND.std(axis=0)
    scale_D = np.maximum(spread_D, max(LEAST_SCALE * float(spread_D.mean()), 1e-6))
    centred_ND = ((features_ND - mean_D) / scale_D).astype(np.float64)
    _, lengths, directions = np.linalg.svd(centred_ND, full_matrices=False)
    variances = lengths**2 / (images - 1)
    kept = min(DIRECTIONS, images // IMAGES_PER_DIRECTION, size - 1)
    rest = max(float(variances[kept:].sum()) / (size - kept), 1e-9)
    return FeatureSpace(
        mean_D=mean_D.astype(np.float32),
        scale_D=scale_D.astype(np.float32),
        directions_RD=directions[:kept].astype(np.float32),
        variance_R=np.maximum(variances[:kept], rest).astype(np.float32),
        rest=rest,
    )
