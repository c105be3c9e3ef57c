"""The job of scoring the ensemble and its members on test, and of writing the report. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Score the test split and write all of ``reports``.

    Args:
        augmented_dir: the recipe and the extra samples that the members were trained with.
        out_dir: a temporary folder that the caller renames when everything is in it.
        overlays: how many test images are drawn: the worst, most typical and best third each.
        progress_path: a JSON file that says how many images are scored; None for none.
    """

    ensemble_dir: Path
    packed_dir: Path
    augmented_dir: Path
    out_dir: Path
    overlays: int
    progress_path: Path | None = None
