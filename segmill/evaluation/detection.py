"""What the anomaly detector of an ensemble finds: corrupted test images against test images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.anomaly.corruptions import KINDS, corrupt
from segmill.anomaly.detector import Detector
from segmill.anomaly.scores import auroc
from segmill.ensembling.predict import Ensemble, batches

Image = NDArray[np.uint8]
Scores = NDArray[np.float64]

MOST_IMAGES = 12  # corrupted copies of each are predicted for every kind and severity
SEVERITIES = (1, 3, 5)
TRUE_POSITIVES = 0.95


def detection(ensemble: Ensemble, images: Sequence[Image], groups: Sequence[str]) -> dict[str, Any] | None:
    """Return what the ensemble's detector says of test images and of corrupted copies; None without a detector.

    Args:
        ensemble: with its detector.
        images: HWC uint8 of test, as a sequence that may read them when they are asked for.
        groups: of each image.

    Returns:
        JSON-able: what the detector is (``Detector.described``); ``images`` and ``groups`` of test, and the share
        ``alarms`` of them with a p-value of at most the rate; by kind of corruption and severity ``auroc``, ``aupr``,
        ``fpr95`` (false positives at 95 % true positives) and ``found``, the share of corrupted images with a p-value
        of at most the rate. ``mean_auroc`` is over all of these.
    """
    if (detector := ensemble.detector) is None:
        return None
    usual = scores_of(ensemble, (images[index] for index in range(len(images))))
    spread = np.unique(np.linspace(0, len(images) - 1, MOST_IMAGES).round().astype(int)).tolist()
    kinds: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        kinds[kind] = {}
        for severity in SEVERITIES:
            copies = (corrupt(images[index], kind, severity, seed=index) for index in spread)
            kinds[kind][str(severity)] = figures(detector, usual, scores_of(ensemble, copies))
    return {
        **detector.described(),
        "images": len(images),
        "groups": len(set(groups)),
        "alarms": round(_alarms(detector, usual), 4),
        "mean_auroc": round(float(np.mean([one["auroc"] for by in kinds.values() for one in by.values()])), 4),
        "kinds": kinds,
    }


def scores_of(ensemble: Ensemble, images: Iterable[Image]) -> Scores:
    """Return the anomaly score of each image; the ensemble has a detector."""
    judged = [one for image_BHWC in batches(images) for one in ensemble.predict_judged(image_BHWC)[1]]
    return np.array([one.score for one in judged if one is not None])


def figures(detector: Detector, usual: Scores, unusual: Scores) -> dict[str, float]:
    """Return ``auroc``, ``aupr``, ``fpr95`` and ``found`` of scores of usual and of unusual images, 0..1."""
    threshold = np.sort(unusual)[int((1 - TRUE_POSITIVES) * len(unusual))]
    return {
        "auroc": round(auroc(usual, unusual), 4),
        "aupr": round(_average_precision(usual, unusual), 4),
        "fpr95": round(float((usual >= threshold).mean()), 4),
        "found": round(_alarms(detector, unusual), 4),
    }


def _alarms(detector: Detector, scores: Scores) -> float:
    return float((detector.calibration[""].p_values(scores) <= detector.policy.rate).mean())


def _average_precision(usual: Scores, unusual: Scores) -> float:
    """Return the area under precision over recall, where both classes weigh the same however many images they have."""
    thresholds = np.unique(unusual)[::-1]
    recall = np.array([(unusual >= one).mean() for one in thresholds])
    false = np.array([(usual >= one).mean() for one in thresholds])
    precision = recall / (recall + false)
    return float((np.diff(recall, prepend=0) * precision).sum())
