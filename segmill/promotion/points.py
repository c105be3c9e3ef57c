"""Named points between two writes, where a test pauses or kills the process; in production nothing happens there."""

from __future__ import annotations

POINTS = (
    "before append",
    "in append",
    "after append",
    "before alias",
    "after alias",
    "between head tags",
    "before mirrored",
    "after mirrored",
    "before collect row",
    "after collect row",
    "in deletion",
    "after deletion",
)


def at(point: str) -> None:
    """Do nothing; tests and benchmarks/promotion_races.py put a function of their own here (one of ``POINTS``)."""
