"""What an anomaly detector is to promise. Light to import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnomalyPolicy:
    """What a detector is to promise.

    Attributes:
        rate: probability of an alarm for an image like those of training.
        abstain: whether an alarm makes the model abstain.
        by: name of the column whose values are calibrated apart; "" for none.
    """

    rate: float
    abstain: bool = False
    by: str = ""
