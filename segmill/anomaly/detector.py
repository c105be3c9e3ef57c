"""The anomaly detector of an ensemble: which scores it goes by, what they are of usual images, and what it promises."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from segmill.anomaly.features import FeatureSpace
from segmill.anomaly.policy import AnomalyPolicy as AnomalyPolicy
from segmill.anomaly.scores import ALL_AT_ONCE, FEATURE_SCORE, Usual, Watched
from segmill.errors import InputError
from segmill.metrics.conformal import UsualScores

FORMAT = 1
FACTS, ARRAYS = "anomaly.json", "anomaly.safetensors"  # in the ensemble's folder
EVERY = ""  # the calibration of images of every value


@dataclass(frozen=True, eq=False)
class Anomaly:
    """What a detector says of one image.

    Attributes:
        score: the larger, the more unusual.
        p_value: in (0, 1]; at most a with probability at most a, for an image like those of training.
        abstain: the policy asks that the prediction is not relied on.
        map_HW: uint8; 255 times the share of usual images' pixels that are less unusual. None where not asked for.
        embedding_E: the image's ``FeatureSpace.coordinates``; None where the detector does not go by features.
    """

    score: float
    p_value: float
    abstain: bool
    map_HW: NDArray[np.uint8] | None = None
    embedding_E: NDArray[np.float32] | None = None

    def as_json(self) -> dict[str, Any]:
        return {"score": round(self.score, 6), "p_value": round(self.p_value, 6), "abstain": self.abstain}


@dataclass(frozen=True, eq=False)
class Detector:
    """Made by ``ensembling.detecting.fit_detector``; saved with the ensemble.

    Attributes:
        policy: what it promises.
        image_score, pixel_score: the scores that it goes by.
        member: whose logits and features are watched; "" for none.
        usual: of each score that ``image_score`` is made of.
        space: where usual images' features lie; None where no member is watched.
        calibration: value of the policy's column -> the scores of its calibration images; ``EVERY`` is of all.
        group_scores_G: the score of one image of each calibration group, exchangeable with those of a stream of images.
        pixel_levels_Q: ascending quantiles of usual images' pixel scores.
        facts: how the scores were chosen, JSON-able.
        group_N: the group of each calibration image, as a number; None in those of earlier releases.
        confidence_N: mean over pixels of the largest probability, of each calibration image.
        embedding_NE: of each, as in ``Anomaly``; None without a space.
    """

    policy: AnomalyPolicy
    image_score: str
    pixel_score: str
    member: str
    usual: Mapping[str, Usual]
    space: FeatureSpace | None
    calibration: Mapping[str, UsualScores]
    group_scores_G: NDArray[np.float64]
    pixel_levels_Q: NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)
    group_N: NDArray[np.int64] | None = None
    confidence_N: NDArray[np.float32] | None = None
    embedding_NE: NDArray[np.float32] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The image scores that have to be computed."""
        return tuple(self.usual) if self.image_score == ALL_AT_ONCE else (self.image_score,)

    @property
    def groups(self) -> int:
        """How many groups calibrate it."""
        return self.calibration[EVERY].groups

    def described(self) -> dict[str, Any]:
        """Return what it goes by and promises, JSON-able."""
        return {
            "score": self.image_score,
            "pixel_score": self.pixel_score,
            **asdict(self.policy),
            "calibration_groups": self.groups,
            "values": sorted(set(self.calibration) - {EVERY}),
            "smallest_p_value": round(self.calibration[EVERY].smallest, 6),
        }

    def scores(self, watched: Watched) -> NDArray[np.float64]:
        """Return the score of each watched image."""
        found = image_scores(watched, self.needs, self.space)
        return combined(found, self.usual) if self.image_score == ALL_AT_ONCE else found[self.image_score]

    def judge(self, watched: Watched, values: Sequence[str], *, maps: bool = False) -> list[Anomaly]:
        """Say of each image how unusual it is.

        Args:
            watched: with the scores of ``needs``, and that of ``pixel_score`` for ``maps``.
            values: each image's of the policy's column; one that is not calibrated apart counts as every value.
            maps: whether the anomaly of each pixel is wanted.
        """
        scores_B, every = self.scores(watched), self.calibration[EVERY]
        p_values_B = [
            float(self.calibration.get(value, every).p_values(score))
            for value, score in zip(values, scores_B, strict=True)
        ]
        maps_B = self.maps(watched) if maps else [None] * len(scores_B)
        embedding_BE: Sequence[NDArray[np.float32] | None] = [None] * len(scores_B)
        if self.space and watched.features_BD is not None:
            embedding_BE = list(self.space.coordinates(watched.features_BD))
        return [
            Anomaly(float(score), p_value, self.policy.abstain and p_value <= self.policy.rate, map_HW, embedding_E)
            for score, p_value, map_HW, embedding_E in zip(scores_B, p_values_B, maps_B, embedding_BE, strict=True)
        ]

    def maps(self, watched: Watched) -> list[NDArray[np.uint8]]:
        """Return the anomaly map of each image, HW uint8."""
        place_BHW = np.searchsorted(self.pixel_levels_Q, watched.pixel[self.pixel_score], side="left")
        return list((255 * place_BHW / len(self.pixel_levels_Q)).round().astype(np.uint8))


def image_scores(
    watched: Watched, names: tuple[str, ...], space: FeatureSpace | None
) -> dict[str, NDArray[np.float64]]:
    """Return score name -> the score of each image."""
    found = {}
    for name in names:
        if name == FEATURE_SCORE:
            assert space is not None and watched.features_BD is not None
            found[name] = space.distance(watched.features_BD)
        else:
            found[name] = watched.image(name)
    return found


def combined(scores: Mapping[str, NDArray[np.float64]], usual: Mapping[str, Usual]) -> NDArray[np.float64]:
    """Return the largest of an image's scores, each by how many spreads it is away from what is usual."""
    return np.asarray(np.max([usual[name].distance(scores[name]) for name in usual], axis=0))


def save_detector(folder: Path, detector: Detector) -> None:
    """Write a detector into the ensemble's folder: the same detector, the same bytes."""
    arrays: dict[str, Any] = {name: getattr(detector, name) for name in _OWN}
    arrays |= {name: getattr(detector, name) for name in _CALIBRATION if getattr(detector, name) is not None}
    values = sorted(detector.calibration)
    for number, value in enumerate(values):
        arrays[f"scores{number}"] = detector.calibration[value].scores_N
        arrays[f"at_least{number}"] = detector.calibration[value].at_least_N
    if detector.space:
        arrays |= {name: getattr(detector.space, name) for name in _SPACE}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ARRAYS)
    facts = {
        "format": FORMAT,
        "policy": asdict(detector.policy),
        "image_score": detector.image_score,
        "pixel_score": detector.pixel_score,
        "member": detector.member,
        "usual": {name: asdict(one) for name, one in detector.usual.items()},
        "values": values,
        "groups": [detector.calibration[value].groups for value in values],
        "rest": detector.space.rest if detector.space else None,
        "facts": detector.facts,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def load_detector(folder: Path) -> Detector | None:
    """Read what ``save_detector`` wrote; None where the ensemble has no detector.

    Raises InputError where it is unreadable or of another format.
    """
    if not (folder / FACTS).is_file():
        return None
    try:
        facts, arrays = json.loads((folder / FACTS).read_text()), load_file(folder / ARRAYS)
        if facts["format"] != FORMAT:
            raise InputError(f"{folder / FACTS} has format {facts['format']}; this segmill reads {FORMAT}")
        return Detector(
            policy=AnomalyPolicy(**facts["policy"]),
            image_score=facts["image_score"],
            pixel_score=facts["pixel_score"],
            member=facts["member"],
            usual={name: Usual(**one) for name, one in facts["usual"].items()},
            space=FeatureSpace(**{name: arrays[name] for name in _SPACE}, rest=facts["rest"])
            if facts["rest"]
            else None,
            calibration={
                value: UsualScores(arrays[f"scores{number}"], arrays[f"at_least{number}"], facts["groups"][number])
                for number, value in enumerate(facts["values"])
            },
            **{name: arrays[name] for name in _OWN},
            **{name: arrays.get(name) for name in _CALIBRATION},
            facts=facts["facts"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise InputError(
            f"{folder} holds no anomaly detector that can be read ({error}); build the ensemble again"
        ) from None


_OWN = ("group_scores_G", "pixel_levels_Q")
_CALIBRATION = ("group_N", "confidence_N", "embedding_NE")
_SPACE = ("mean_D", "scale_D", "directions_RD", "variance_R")
