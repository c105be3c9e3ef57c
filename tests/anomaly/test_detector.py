"""A detector keeps what it promises through its files, and its thresholds are those of MAPIE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mapie.regression import SplitConformalRegressor
from sklearn.dummy import DummyRegressor

from segmill.anomaly.detector import FACTS, AnomalyPolicy, Detector, load_detector, save_detector
from segmill.anomaly.features import feature_space
from segmill.anomaly.scores import ALL_AT_ONCE, Usual, Watched
from segmill.errors import InputError
from segmill.metrics.conformal import usual_scores

GROUPS = [f"g{number}" for number in range(40)]


def made(image_score: str = "energy", *, abstain: bool = True) -> Detector:
    random = np.random.default_rng(0)
    scores = random.normal(size=40)
    return Detector(
        policy=AnomalyPolicy(0.1, abstain=abstain, by="camera"),
        image_score=image_score,
        pixel_score="energy",
        member="one",
        usual={"energy": Usual(0.0, 1.0), "mahalanobis": Usual(1.0, 0.5)} if image_score == ALL_AT_ONCE else
              {image_score: Usual(0.0, 1.0)},
        space=feature_space(random.normal(size=(12, 5)).astype(np.float32)),
        calibration={"": usual_scores(scores, GROUPS), "night": usual_scores(scores[:20] + 100, GROUPS[:20])},
        group_scores_G=scores,
        pixel_levels_Q=np.linspace(-1, 1, 255).astype(np.float32),
        facts={"image_auroc": {"energy": 0.9}},
        embedding_NE=random.normal(size=(40, 2)).astype(np.float32),
        group_N=np.arange(40),
        confidence_N=random.uniform(size=40).astype(np.float32),
    )  # fmt: skip


def watched(scores: list[float], features_BD: np.ndarray | None = None) -> Watched:
    pixel_BHW = np.asarray(scores, np.float32)[:, None, None] * np.ones((1, 4, 6), np.float32)
    return Watched({"energy": pixel_BHW}, features_BD)


def test_what_is_unusual_gets_a_small_p_value_and_abstains() -> None:
    usual, unusual = made().judge(watched([0.0, 50.0]), ["", ""])
    assert usual.p_value > 0.3 and not usual.abstain
    assert unusual.p_value == pytest.approx(1 / 41) and unusual.abstain
    assert not made(abstain=False).judge(watched([50.0]), [""])[0].abstain


def test_each_value_of_the_column_has_a_calibration_of_its_own() -> None:
    night, unknown = made().judge(watched([50.0, 50.0]), ["night", "dusk"])
    assert night.p_value == 1.0 and unknown.p_value == pytest.approx(1 / 41)


def test_maps_say_how_many_usual_pixels_are_less_unusual() -> None:
    (low,), (high,), (none,) = (made().judge(watched([score]), [""], maps=maps)
                                for score, maps in ((-5.0, True), (5.0, True), (5.0, False)))  # fmt: skip
    assert low.map_HW is not None and high.map_HW is not None and none.map_HW is None
    assert (low.map_HW == 0).all() and (high.map_HW == 255).all() and high.map_HW.shape == (4, 6)
    (middle,) = made().judge(watched([0.0]), [""], maps=True)
    assert middle.map_HW is not None and abs(int(middle.map_HW[0, 0]) - 127) <= 1


def test_all_at_once_takes_the_score_that_is_furthest_away_on_either_side() -> None:
    detector = made(ALL_AT_ONCE)
    near, far = np.zeros((1, 5), np.float32) + detector.space.mean_D, np.full((1, 5), 90, np.float32)
    assert detector.scores(watched([-7.0], near))[0] == pytest.approx(7)
    assert detector.scores(watched([0.0], far))[0] > 7


@pytest.mark.parametrize("image_score", ["energy", ALL_AT_ONCE])
def test_files_bring_the_same_detector_back_and_are_the_same_bytes(tmp_path: Path, image_score: str) -> None:
    detector = made(image_score)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_detector(tmp_path / name, detector)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]
    found = load_detector(tmp_path / "a")
    assert found is not None and found.described() == detector.described() and found.facts == detector.facts
    seen = watched([0.3, 50.0], np.ones((2, 5), np.float32))
    assert [one.as_json() for one in found.judge(seen, ["", "night"])] == [
        one.as_json() for one in detector.judge(seen, ["", "night"])
    ]
    assert np.array_equal(found.group_scores_G, detector.group_scores_G)
    for name in ("group_N", "confidence_N", "embedding_NE"):
        assert np.array_equal(getattr(found, name), getattr(detector, name)), name


def test_where_it_goes_by_features_it_says_where_an_image_lies(tmp_path: Path) -> None:
    detector, features_BD = made(ALL_AT_ONCE), np.full((1, 5), 2, np.float32)
    (one,) = detector.judge(watched([0.0], features_BD), [""])
    (blind,) = replace(made(), space=None).judge(watched([0.0], features_BD), [""])
    assert blind.embedding_E is None and one.embedding_E is not None
    assert np.array_equal(one.embedding_E, detector.space.coordinates(features_BD)[0])
    earlier = replace(detector, embedding_NE=None, confidence_N=None, group_N=None)  # as other releases wrote it
    save_detector(tmp_path, earlier)
    found = load_detector(tmp_path)
    assert found is not None and found.embedding_NE is None and found.group_N is None


def test_a_folder_without_one_has_none_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert load_detector(tmp_path) is None
    save_detector(tmp_path, replace(made(), space=None))
    (tmp_path / FACTS).write_text((tmp_path / FACTS).read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(InputError, match="format 7; this segmill reads 1"):
        load_detector(tmp_path)
    (tmp_path / FACTS).write_text("{}")
    with pytest.raises(InputError, match="build the ensemble again"):
        load_detector(tmp_path)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_the_threshold_is_that_of_mapie(rate: float) -> None:
    """MAPIE's split conformal interval around 0 is as wide as the scores that raise no alarm are large."""
    scores = np.abs(np.random.default_rng(4).normal(size=60))
    nothing = np.zeros((60, 1))
    model = DummyRegressor(strategy="constant", constant=0.0).fit(nothing, scores)
    mapie = SplitConformalRegressor(model, confidence_level=1 - rate, prefit=True).conformalize(nothing, scores)
    _, interval = mapie.predict_interval(np.zeros((1, 1)))
    found = usual_scores(scores, [str(number) for number in range(60)]).threshold(rate)
    assert found == pytest.approx(float(interval[0, 1, 0]))
