"""The job of scoring the ensemble and its members on test, and of writing the report. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Score the test split and write all of ``reports``.

    Args:
        augmented_dir: the recipe and the extra samples that the members were trained with.
        out_dir: a temporary folder that the caller renames when everything is in it.
        overlays: how many test images are drawn: the worst, most typical and best third each.
    """

    ensemble_dir: Path
    packed_dir: Path
    augmented_dir: Path
    out_dir: Path
    overlays: int


def evaluate_on_ray(job: EvaluateJob) -> dict[str, Any]:
    """Be what Ray runs."""
    from segmill.evaluation.report import evaluate_and_report

    return evaluate_and_report(job)
