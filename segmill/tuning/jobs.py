"""The jobs of a tuning: the search, one whole training of a setting, and what both prove. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmill.tuning.space import Dimension
from segmill.tuning.trials import Work


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """Search ``space`` for the values that ``work`` trains best with.

    Args:
        trials: most trials; None has no limit.
        minutes: time for the search and, of it, for ``repeats`` whole trainings afterwards (half of it at most).
        present: the values of params.yaml as it is, which are the first trial; None where the space lacks them.
        repeats: whole trainings that follow.
    """

    work: Work
    space: tuple[Dimension, ...]
    trials: int | None
    minutes: float | None
    present: dict[str, Any] | None
    repeats: int


@dataclass(frozen=True, kw_only=True)
class RepeatJob:
    """Train with ``values`` and ``seed`` to the end."""

    work: Work
    values: dict[str, Any]
    seed: int


@dataclass(frozen=True, kw_only=True)
class EvidenceJob:
    """Say what the trials of a tuning found, in files in ``out_dir``.

    Args:
        present: the searched keys' values in params.yaml; None where they are not in the search space.
        repeats: additional seeds that the winner and present were trained with.
        confidence: of the interval around the gain.
    """

    work: Work
    space: tuple[Dimension, ...]
    out_dir: Path
    present: dict[str, Any] | None
    repeats: int
    confidence: float


def search_on_ray(job: SearchJob) -> None:
    """Be what Ray runs."""
    from segmill.tuning.search import search

    search(job)


def repeat_on_ray(job: RepeatJob) -> None:
    """Be what Ray runs."""
    from segmill.tuning.search import train_once

    train_once(job)


def evidence_on_ray(job: EvidenceJob) -> dict[str, Any]:
    """Be what Ray runs."""
    from segmill.tuning.evidence import write_evidence

    return write_evidence(job)
