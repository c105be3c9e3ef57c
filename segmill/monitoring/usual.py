"""The reference of the windows: the statistics of the images that a version learned from, or of its first windows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.monitoring.statistics import COLORS, image_statistics
from segmill.monitoring.sums import Sums, ValueSums

Pixels = NDArray[np.uint8]

FILE = "usual_images.json"  # in the folder of a registered version
TRAINING = "training"
FIRST_WINDOWS = "first windows"


@dataclass(frozen=True)
class KnownImage:
    """An image that a version learned from.

    Attributes:
        image_HWC: uint8, C = 3.
        ids_HW: its labelled or predicted class ids, uint8.
        group: images of one group (a camera, a patient) are alike; each is one observation of the mean.
        confidence: of the model's prediction, as the service says it; NaN where nothing was predicted. That of images
            the model did not learn is the one to compare with: on its training images it is more confident.
    """

    image_HWC: Pixels
    ids_HW: Pixels
    group: str
    confidence: float = math.nan


@dataclass(frozen=True, eq=False)
class UsualImages:
    """What windows are compared with.

    Attributes:
        source: ``TRAINING`` or ``FIRST_WINDOWS``.
        groups: how many groups of images, or windows, it is made from.
        sums: of all images.
        errors: standard error of each statistic's mean, by groups; NaN for fewer than two.
        color_errors: that of the mean colour histogram, ``COLORS`` values.
        other_groups: by name, how many groups a statistic is made from, where these are others.
    """

    source: str
    groups: int
    sums: Sums
    errors: dict[str, float]
    color_errors: NDArray[np.float64]
    other_groups: Mapping[str, int] = field(default_factory=dict)

    def groups_of(self, name: str) -> int:
        """Return how many groups a statistic is made from."""
        return self.other_groups.get(name, self.groups)

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "groups": self.groups,
            "sums": self.sums.as_json(),
            "errors": {name: None if math.isnan(error) else error for name, error in self.errors.items()},
            "color_errors": [None if math.isnan(error) else error for error in self.color_errors.tolist()],
            "other_groups": dict(self.other_groups),
        }

    @staticmethod
    def from_json(said: dict[str, Any]) -> UsualImages:
        """Raises InputError where another release wrote it in another format."""
        return UsualImages(
            source=said["source"],
            groups=int(said["groups"]),
            sums=Sums.from_json(said["sums"]),
            errors={name: math.nan if error is None else float(error) for name, error in said["errors"].items()},
            color_errors=np.array([math.nan if error is None else error for error in said["color_errors"]], np.float64),
            other_groups=said.get("other_groups", {}),
        )

    def content(self) -> bytes:
        """Return what ``read`` reads."""
        return json.dumps(self.as_json()).encode()

    @staticmethod
    def read(path: Path) -> UsualImages:
        return UsualImages.from_json(json.loads(path.read_text()))


def usual_images(images: Iterable[KnownImage], class_names: Sequence[str]) -> UsualImages:
    """Return the statistics of the images that a version learned from; one image is in memory at a time.

    The statistics of all of them are kept until the end: some 500 bytes an image.
    """
    by_group: dict[str, list[Any]] = {}
    for one in images:
        found = image_statistics(one.image_HWC, one.ids_HW, class_names, confidence=one.confidence)
        by_group.setdefault(one.group, []).append(found)
    return usual_of([Sums.of(group) for group in by_group.values()], TRAINING)


def usual_of(parts: Sequence[Sums], source: str) -> UsualImages:
    """Return the reference that groups of images, or windows, make."""
    whole = Sums.merge(parts)
    colors = np.array([part.colors for part in parts]).reshape(-1, COLORS)
    mean = whole.colors / max(whole.images, 1)
    color_errors = _error(colors, np.array([part.images for part in parts]), mean)
    return UsualImages(source, len(parts), whole, _errors(parts, whole), color_errors)


def with_held_out(
    usual: UsualImages, values: Mapping[str, NDArray[np.float32]], group_N: NDArray[np.int64]
) -> UsualImages:
    """Return a reference that has other statistics too, of images that were not learned from.

    A network is surer of images that it learned from, and sees them otherwise, than new ones of the same kind.

    Args:
        values: by name of the statistic, that of each of N images.
        group_N: the group of each, as a number.
    """
    groups = np.unique(group_N)
    parts = [
        Sums(values={name: ValueSums.of(name, value_N[group_N == group]) for name, value_N in values.items()})
        for group in groups
    ]
    whole = Sums.merge(parts)
    return replace(
        usual,
        sums=replace(usual.sums, values=usual.sums.values | whole.values),
        errors=usual.errors | _errors(parts, whole),
        other_groups=dict.fromkeys(values, len(groups)),
    )


def _errors(parts: Sequence[Sums], whole: Sums) -> dict[str, float]:
    """Return the standard error of each statistic's mean."""
    errors = {}
    for name, sums in whole.values.items():
        some = [part.values[name] for part in parts if name in part.values and part.values[name].count]
        errors[name] = float(
            _error(np.array([[one.total] for one in some]).reshape(-1, 1), np.array([one.count for one in some]),
                   np.array([sums.mean]))[0]
        )  # fmt: skip
    return errors


def _error(total_GN: NDArray[np.float64], count_G: NDArray[np.int64], mean_N: NDArray[np.float64]) -> Any:
    """Return the standard error of means over images that are alike within a group (cluster-robust; Liang and Zeger,
    "Longitudinal data analysis using generalized linear models", 1986): N values, NaN for fewer than two groups."""
    groups = len(count_G)
    if groups < 2:
        return np.full(len(mean_N), math.nan)
    residual_GN = total_GN - count_G[:, None] * mean_N
    return np.sqrt(groups / (groups - 1) * np.square(residual_GN).sum(axis=0)) / count_G.sum()
