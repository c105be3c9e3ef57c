"""Detection figures are scikit-learn's, and an ensemble without a detector has none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from segmill.anomaly.corruptions import KINDS
from segmill.anomaly.detector import AnomalyPolicy, Detector
from segmill.anomaly.scores import Usual
from segmill.ensembling.predict import Ensemble
from segmill.evaluation.detection import SEVERITIES, detection, figures
from segmill.metrics.conformal import usual_scores


class ByBrightness:
    """Two classes, the more undecided the brighter an image is."""

    def predict_probs(self, image_BHWC: np.ndarray) -> np.ndarray:
        first = 1 - image_BHWC.mean(axis=3, dtype=np.float32) / 511
        return np.stack([first, 1 - first], axis=1)


def detector(scores: np.ndarray) -> Detector:
    return Detector(
        policy=AnomalyPolicy(0.1), image_score="entropy", pixel_score="entropy", member="",
        usual={"entropy": Usual(0.0, 1.0)}, space=None,
        calibration={"": usual_scores(scores, [str(number) for number in range(len(scores))])}, group_scores_G=scores,
        pixel_levels_Q=np.linspace(0, 1, 255).astype(np.float32),
    )  # fmt: skip


def test_figures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    usual, unusual = random.normal(0, 1, 200), random.normal(1.5, 1, 200)
    found = figures(detector(random.normal(0, 1, 99)), usual, unusual)
    truth, scores = np.repeat([0, 1], 200), np.concatenate([usual, unusual])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)
    assert found["aupr"] == pytest.approx(average_precision_score(truth, scores), abs=1e-4)
    assert found["fpr95"] == pytest.approx(false[np.flatnonzero(true >= 0.95)[0]], abs=0.006)
    assert 0.35 < found["found"] < 0.75


def test_every_kind_and_severity_is_tried_on_test_images() -> None:
    random = np.random.default_rng(1)
    images = [random.integers(40, 90, (24, 30, 3), dtype=np.uint8) for _ in range(20)]
    plain = Ensemble({"one": ByBrightness()}, {"one": 1.0}, tta_hflip=False, facts={})
    groups = [f"g{number // 2}" for number in range(20)]
    assert detection(plain, images, groups) is None
    scores = np.array([plain.watch(image[None], ("entropy",))[1].image("entropy")[0] for image in images])
    guarded = Ensemble({"one": ByBrightness()}, {"one": 1.0}, tta_hflip=False, facts={}, detector=detector(scores))
    found = detection(guarded, images, groups)
    assert found is not None and (found["images"], found["groups"]) == (20, 10)
    assert set(found["kinds"]) == set(KINDS)
    assert all(set(one) == {str(severity) for severity in SEVERITIES} for one in found["kinds"].values())
    assert found["kinds"]["brighter"]["5"]["auroc"] == 1.0 == found["kinds"]["brighter"]["5"]["found"]
    assert found["kinds"]["darker"]["5"]["auroc"] == 0.0, "a score of one side does not see the other"
    assert 0 <= found["alarms"] <= 0.1 and found["rate"] == 0.1 and found["calibration_groups"] == 20
