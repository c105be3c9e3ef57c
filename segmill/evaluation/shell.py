"""What Ray runs to evaluate: the computation, with its progress written to a file. Light to import."""

from __future__ import annotations

from typing import Any

from segmill import progress
from segmill.evaluation.job import EvaluateJob


def evaluate_on_ray(job: EvaluateJob) -> dict[str, Any]:
    """Score and report; say how many images are scored in ``job.progress_path``."""
    from segmill.evaluation.report import evaluate_and_report

    if job.progress_path is None:
        return evaluate_and_report(job)
    return evaluate_and_report(job, progress.counter(job.progress_path))
