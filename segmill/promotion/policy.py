"""What the gate is given: the measurements of two models, and what a promotion asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class GateEvidence:
    """What was measured of both models on the N test images.

    ``challenger_counts_NKK``, ``champion_counts_NKK``: integer confusion tables, rows truth, images in one order; None
    where no version serves yet. ``groups``: of the N images. ``slices``: manifest column -> value of each image.
    ``latency_ms``: times per image of challenger and champion, measured in turn. ``bytes``: of the models' files.
    ``sealed``: nothing but PASS or not PASS may be said of these images.
    """

    challenger_counts_NKK: NDArray[Any]
    champion_counts_NKK: NDArray[Any] | None
    groups: Sequence[str]
    class_names: Sequence[str]
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    latency_ms: tuple[Sequence[float], Sequence[float]] | None = None
    bytes: tuple[int, int] | None = None
    sealed: bool = False


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """What the gate asks for: the values of ``promotion:`` in params.yaml, which explains each."""

    floor_miou: float
    min_gain: float = 0.0
    confidence: float = 0.95
    rule: Literal["lifetime", "plain"] = "lifetime"
    goal: Literal["superiority", "noninferiority"] = "superiority"
    margin: float = 0.01
    untestable: Literal["warn", "refuse"] = "warn"
    class_loss: float | None = None
    slices: Mapping[str, float] = field(default_factory=dict)
    latency_ratio: float | None = None
    size_ratio: float | None = None

    @property
    def plain_level(self) -> float:
        """The one-sided level of one night: of guards, and of the gain under rule plain."""
        return (1 - self.confidence) / 2

    @property
    def least_gain(self) -> float:
        """The gain in mIoU that must be exceeded."""
        return self.min_gain if self.goal == "superiority" else -self.margin
