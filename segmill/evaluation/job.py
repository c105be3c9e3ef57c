"""The job of scoring the ensemble and its members on test. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Score the test split.

    Args:
        out_dir: a temporary folder, from which the caller takes the files when all are in it.
        sealed: groups of test that are left out of all that is written.
        overlays: how many predictions are kept to draw: of the worst, most typical and best third each.
        progress_path: a JSON file that says how many images are scored; None for none.
        images: the part that is scored, by the numbers of its images among the open ones; None is all.
    """

    ensemble_dir: Path
    packed_dir: Path
    out_dir: Path
    overlays: int
    sealed: tuple[str, ...] = ()
    progress_path: Path | None = None
    images: range | None = None
