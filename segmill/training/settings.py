"""What the training loop needs to know, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segmill.train_settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Settings(TrainSettings):
    """The training settings, and what the member's own block and the packed splits add.

    ``lr``, ``aux_heads``, ``head_weights``, ``deep_supervision``: the member's. ``num_classes``, ``ignore_id``,
    ``grayscale``, ``clahe``: of the packed splits.
    """

    member: str
    lr: float
    aux_heads: Mapping[str, float] = field(default_factory=dict)
    head_weights: str = "fixed"
    deep_supervision: float = 0.0
    num_classes: int
    ignore_id: int
    grayscale: bool = False
    clahe: float = 0.0
