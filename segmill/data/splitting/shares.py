"""How the groups of a set are shared out between train, val and test."""

from __future__ import annotations

from dataclasses import dataclass

from segmill.errors import InputError


@dataclass(frozen=True)
class SplitShares:
    """The shares of the groups that val and test are to get, 0..1; train gets the rest. ``seed`` decides which groups.

    Raises InputError for shares that leave no train.
    """

    val: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise InputError(f"val is {self.val} and test {self.test}", "each must be 0 or more and their sum below 1")
