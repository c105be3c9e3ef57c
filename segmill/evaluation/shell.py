"""Evaluates on Ray: every worker there is room for scores its part of the images, and one writes. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segmill import progress
from segmill.cluster.room import room
from segmill.cluster.work import Running, on_ray, on_ray_after
from segmill.evaluation.job import EvaluateJob

if TYPE_CHECKING:
    from segmill.evaluation.scoring import Scored

RETRIES = 3  # of a part whose process died


def start_evaluation(job: EvaluateJob, workers: int | None = None) -> Running[dict[str, Any]]:
    """Start to score, each worker a part of the images; the content of metrics.json comes back.

    What is written is the same for any number of workers, bit for bit. A process that dies is replaced, and its part
    alone is scored again.

    Args:
        workers: how many at most; None is as many as the cluster has room for.
    """
    from segmill.data.packing.packed import PackedSplit
    from segmill.data.packing.sealed import open_part
    from segmill.ensembling.parts import cut, memory_bytes
    from segmill.ensembling.predict import read_ensemble

    samples, facts = open_part(PackedSplit(job.packed_dir / "test"), job.sealed), read_ensemble(job.ensemble_dir)
    shapes = [samples.shape(index) for index in range(len(samples))]
    weights_bytes = sum(path.stat().st_size for path in job.ensemble_dir.rglob("*.*") if path.is_file())
    maps = len(facts["weights"]) + 2  # each member's, their sum, and one being made
    free = room(memory_bytes(shapes, classes=len(facts["classes"]), maps=maps, weights_bytes=weights_bytes))
    parts = [images for (images,) in cut([shapes], workers or free.workers)]
    if len(parts) < 2:
        return on_ray(evaluate_on_ray, job, free.each, retries=RETRIES)
    running = [on_ray(score_part_on_ray, part, free.each, retries=RETRIES) for part in _part_jobs(job, parts)]
    return on_ray_after(finish_on_ray, job, running, free.each, retries=RETRIES)


def _part_jobs(job: EvaluateJob, parts: Sequence[range]) -> list[EvaluateJob]:
    """Return a job per part, whose progress files together make up that of ``job``."""
    note = job.progress_path
    notes = progress.notes_of_parts(note, [len(images) for images in parts]) if note else [None] * len(parts)
    return [replace(job, images=images, progress_path=note) for images, note in zip(parts, notes, strict=True)]


def evaluate_on_ray(job: EvaluateJob) -> dict[str, Any]:
    """Score all images in this process; return the content of metrics.json."""
    from segmill.evaluation.scoring import evaluate

    return evaluate(
        job.ensemble_dir,
        job.packed_dir,
        job.out_dir,
        sealed=job.sealed,
        examples=job.overlays,
        on_progress=progress.counter(job.progress_path),
    )


def score_part_on_ray(job: EvaluateJob) -> Scored:
    """Count the job's images in this process."""
    from segmill.evaluation.scoring import score_part

    assert job.images is not None
    on_progress = progress.counter(job.progress_path)
    return score_part(job.ensemble_dir, job.packed_dir, job.images, sealed=job.sealed, on_progress=on_progress)


def finish_on_ray(job: EvaluateJob, parts: list[Scored]) -> dict[str, Any]:
    """Write what ``evaluate_on_ray`` does, from the counts of all parts; return the content of metrics.json."""
    from segmill.evaluation.scoring import finish

    return finish(job.ensemble_dir, job.packed_dir, job.out_dir, parts, sealed=job.sealed, examples=job.overlays)
