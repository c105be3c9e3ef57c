"""Scores registered versions on Ray, each in as many processes as there is room for. Light to import."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmill.cluster.room import room
from segmill.cluster.work import on_ray, wait
from segmill.data.packing.packed import read_pack
from segmill.ensembling.parts import Shape, cut, memory_bytes
from segmill.ensembling.predict import PIXELS_AT_ONCE
from segmill.files import replacing
from segmill.promotion.registered import scored_part
from segmill.promotion.score_job import ScoreJob, score_on_ray
from segmill.promotion.versions import model_bytes

Counts = NDArray[np.int64]

RETRIES = 3  # of a part whose process died
LEAST_PX = 4 * PIXELS_AT_ONCE  # of a part: before it predicts, a process fetches, verifies and loads the version
MAPS = 3  # a served ensemble predicts member by member: one's probabilities, their sum, and one being made


def score_on_workers(jobs: Sequence[ScoreJob]) -> list[list[Counts]]:
    """Return for each job what ``registered.score_registered`` does; its images are shared between workers.

    Counts and kept predictions are the same for any number of workers, bit for bit. A process that dies is replaced,
    and its part alone is scored again. Raises errors as ``score_registered``.
    """
    if not jobs:
        return []
    shapes = [[_shapes(job, split) for split in job.splits] for job in jobs]
    free = room(
        memory_bytes(
            [shape for splits in shapes for split in splits for shape in split],
            classes=len(read_pack(jobs[0].packed_dir).class_names),
            maps=MAPS,
            weights_bytes=max(model_bytes(job.uri, job.model_name, job.version, job.trusted) for job in jobs),
        )
    )
    share = max(1, free.workers // len(jobs))
    parts = [part_jobs(job, splits, share) for job, splits in zip(jobs, shapes, strict=True)]
    running = [[on_ray(score_on_ray, part, free.each, retries=RETRIES) for part in some] for some in parts]
    return [
        _joined(job, some, [wait(one) for one in begun]) for job, some, begun in zip(jobs, parts, running, strict=True)
    ]


def part_jobs(job: ScoreJob, shapes: Sequence[Sequence[Shape]], most: int) -> list[ScoreJob]:
    """Return at most ``most`` jobs that together are ``job``; ``shapes``: of its images, per split."""
    px = sum(height * width for split in shapes for height, width in split)
    parts = cut(shapes, max(1, min(most, px // LEAST_PX)))
    return [job] if len(parts) < 2 else [_part(job, number, images) for number, images in enumerate(parts)]


def _part(job: ScoreJob, number: int, images: Sequence[range]) -> ScoreJob:
    splits, ranges = zip(*((split, some) for split, some in zip(job.splits, images, strict=True) if some), strict=True)
    place = job.predictions_path if splits[0] == job.splits[0] else None
    return replace(job, splits=splits, images=ranges, predictions_path=place and place.with_suffix(f".{number}.npz"))


def _shapes(job: ScoreJob, split: str) -> list[Shape]:
    samples = scored_part(job, split)
    return [samples.shape(index) for index in range(len(samples))]


def _joined(job: ScoreJob, parts: Sequence[ScoreJob], found: Sequence[list[Counts]]) -> list[Counts]:
    """Return the job's counts per split from those of its parts, and make its file of predictions from theirs."""
    if len(parts) == 1:
        return found[0]
    by_split: dict[str, list[Counts]] = {split: [] for split in job.splits}
    for part, counts in zip(parts, found, strict=True):
        for split, some in zip(part.splits, counts, strict=True):
            by_split[split].append(some)
    kept = [part.predictions_path for part in parts if part.predictions_path and part.predictions_path.is_file()]
    if job.predictions_path and kept:
        _join_predictions(kept, job.predictions_path)
    return [np.concatenate(some) for some in by_split.values()]


def _join_predictions(parts: Sequence[Path], whole: Path) -> None:
    with replacing(whole, durable=False) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts:
            with zipfile.ZipFile(part) as own:
                for name in own.namelist():
                    archive.writestr(name, own.read(name))
    for part in parts:
        part.unlink()
