"""Sums of statistics over images, which merge: counts, sums, sums of squares, histograms with fixed bins."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError
from segmill.monitoring.statistics import COLORS, ImageStatistics, scale_of

BINS = 64
FORMAT = 1


@dataclass
class ValueSums:
    """Sums of one statistic. ``histogram``: int64, of ``BINS`` equal bins over the statistic's scale."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @staticmethod
    def of(name: str, values: Iterable[float]) -> ValueSums:
        """Return the sums of some images' values; NaN counts nowhere."""
        given = np.fromiter(values, np.float64)
        known = given[~np.isnan(given)]
        scale = scale_of(name)
        places = np.clip((known - scale.low) / (scale.high - scale.low) * BINS, 0, BINS - 1).astype(np.int64)
        histogram = np.bincount(places, minlength=BINS).astype(np.int64)
        return ValueSums(len(known), float(known.sum()), float(np.square(known).sum()), histogram)

    def merged(self, other: ValueSums) -> ValueSums:
        return ValueSums(
            self.count + other.count, self.total + other.total, self.squares + other.squares,
            self.histogram + other.histogram,
        )  # fmt: skip

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """Return the sample variance; NaN for fewer than two images, 0 where only rounding differs."""
        if self.count < 2:
            return math.nan
        spread = self.squares - self.total * self.total / self.count
        return spread / (self.count - 1) if spread > 1e-12 * self.squares else 0.0

    def quantile(self, name: str, share: float) -> float:
        """Return a quantile, as exact as a bin is wide; NaN without images."""
        if not self.count:
            return math.nan
        if self.variance == 0:
            return self.mean
        scale = scale_of(name)
        below = np.concatenate([[0], np.cumsum(self.histogram)]) / self.count
        edges = np.linspace(scale.low, scale.high, BINS + 1)
        place = int(np.searchsorted(below, share, side="left"))
        if place == 0:
            return float(edges[int(np.argmax(self.histogram > 0))])
        inside = (share - below[place - 1]) / (below[place] - below[place - 1])
        return float(edges[place - 1] + inside * (edges[place] - edges[place - 1]))


@dataclass
class Sums:
    """What is kept of many images.

    Attributes:
        images: how many.
        values: by name of the statistic.
        colors, color_squares: of the colour histograms, ``COLORS`` sums and sums of squares.
    """

    images: int = 0
    values: dict[str, ValueSums] = field(default_factory=dict)
    colors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(COLORS))
    color_squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(COLORS))

    @staticmethod
    def of(images: Iterable[ImageStatistics]) -> Sums:
        every = list(images)
        names = dict.fromkeys(name for one in every for name in one.values)
        colors = np.array([one.colors for one in every]).reshape(-1, COLORS)
        return Sums(
            len(every),
            {name: ValueSums.of(name, (one.values.get(name, math.nan) for one in every)) for name in names},
            colors.sum(axis=0),
            np.square(colors).sum(axis=0),
        )

    def merged(self, other: Sums) -> Sums:
        names = dict.fromkeys([*self.values, *other.values])
        none = ValueSums()
        return Sums(
            self.images + other.images,
            {name: self.values.get(name, none).merged(other.values.get(name, none)) for name in names},
            self.colors + other.colors,
            self.color_squares + other.color_squares,
        )

    @staticmethod
    def merge(every: Iterable[Sums]) -> Sums:
        whole = Sums()
        for one in every:
            whole = whole.merged(one)
        return whole

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold. Histograms are lists of pairs (bin, count) of the bins that are not empty."""
        return {
            "format": FORMAT,
            "images": self.images,
            "values": {
                name: [one.count, one.total, one.squares, [[int(bin), int(one.histogram[bin])]
                                                           for bin in np.flatnonzero(one.histogram)]]
                for name, one in self.values.items()
            },
            "colors": [[int(bin), self.colors[bin], self.color_squares[bin]] for bin in np.flatnonzero(self.colors)],
        }  # fmt: skip

    @staticmethod
    def from_json(said: dict[str, Any]) -> Sums:
        """Raises InputError where another release wrote it in another format."""
        if said.get("format") != FORMAT:
            raise InputError(
                f"statistics of images have the format {said.get('format')}, and this segmill reads {FORMAT}",
                "use the release that wrote them, or a newer one",
            )
        found = Sums(int(said["images"]))
        for name, (count, total, squares, pairs) in said["values"].items():
            one = ValueSums(int(count), float(total), float(squares))
            for place, many in pairs:
                one.histogram[place] = many
            found.values[name] = one
        for place, total, squares in said["colors"]:
            found.colors[place], found.color_squares[place] = total, squares
        return found

    def text(self) -> str:
        return json.dumps(self.as_json(), separators=(",", ":"))
