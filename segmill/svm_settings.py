"""The settings of a classical member, an SVM on features of pixels, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SvmSettings:
    """A classical member's block of params.yaml, where each key has its limits, default and text."""

    features: tuple[str, ...]
    backbone: str | None
    weights: str
    pixels: int
    components: int
    gamma: float | Literal["auto"]
    c: float | None
    seed: int
    max_minutes: float | None
