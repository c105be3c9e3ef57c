"""Anomaly scores of images and of pixels, from what an ensemble predicts; the larger, the more unusual.

Energy is that of Liu et al., "Energy-based out-of-distribution detection" (2020), max-logit that of Hendrycks et al.,
"Scaling out-of-distribution detection for real-world settings" (2022): both of the logits of one member, the one of the
largest weight. Disagreement is the mutual information of class and member (Houlsby et al., 2011). Mahalanobis is the
distance of a member's features (segmill.anomaly.features).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

LOGIT_SCORES = ("energy", "max_logit")
PROB_SCORES = ("entropy", "disagreement")
FEATURE_SCORE = "mahalanobis"
ALL_AT_ONCE = "largest"  # the largest of all others, each by how far it is from what is usual


@dataclass(frozen=True, eq=False)
class Watched:
    """What was seen of B images while an ensemble predicted them.

    Attributes:
        pixel: score name -> B x H x W float32.
        features_BD: of the watched member, float32; None where no member is a network.
    """

    pixel: Mapping[str, FloatArray]
    features_BD: FloatArray | None

    def image(self, name: str) -> NDArray[np.float64]:
        """Return a score of each image: the mean of its pixels'."""
        return np.asarray(self.pixel[name].mean(axis=(1, 2), dtype=np.float64))


def entropy(probs_BKHW: FloatArray) -> FloatArray:
    """Return the entropy of each pixel's probabilities, in nats: B x H x W."""
    found: FloatArray = -(probs_BKHW * np.log(np.maximum(probs_BKHW, 1e-12))).sum(axis=1)
    return found


@dataclass(frozen=True)
class Usual:
    """Where a score of usual images lies: its ``median``, and its ``spread`` as a standard deviation."""

    median: float
    spread: float

    def distance(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how many spreads scores are away from the median, on either side."""
        return np.abs(scores - self.median) / self.spread


def usual(scores: NDArray[np.float64]) -> Usual:
    """Return the median of scores and 1.4826 times their median absolute deviation, which outliers do not move."""
    median = float(np.median(scores))
    spread = 1.4826 * float(np.median(np.abs(scores - median)))
    return Usual(median, max(spread, 1e-6 * max(abs(median), 1.0)))


def auroc(usual_scores: NDArray[np.float64], unusual_scores: NDArray[np.float64]) -> float:
    """Return the probability that an unusual image has the larger score; ties count one half."""
    both = np.concatenate([usual_scores, unusual_scores])
    _, place, count = np.unique(both, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    n, m = len(usual_scores), len(unusual_scores)
    return float((rank[n:].sum() - m * (m + 1) / 2) / (n * m))
