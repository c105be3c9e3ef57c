"""What Ray runs to evaluate: the computation, with its progress written to a file. Light to import."""

from __future__ import annotations

from typing import Any

from segmill import progress
from segmill.evaluation.job import EvaluateJob


def evaluate_on_ray(job: EvaluateJob) -> dict[str, Any]:
    """Score; say how many images are scored in ``job.progress_path``; return the content of metrics.json."""
    from segmill.evaluation.scoring import evaluate

    on_progress = progress.counter(job.progress_path) if job.progress_path else lambda done, total: None
    return evaluate(
        job.ensemble_dir,
        job.packed_dir,
        job.out_dir,
        sealed=job.sealed,
        examples=job.overlays,
        on_progress=on_progress,
    )
