"""Scores what is left of a set on Ray: each worker loads the version once, then takes parts. Light to import."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.cluster.pool import each_part
from segmill.cluster.room import room
from segmill.ensembling.parts import BYTES_OF_A_PROCESS, BYTES_PER_PX
from segmill.errors import InputError
from segmill.files import replacing
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.versions import model_bytes
from segmill.serving.batch.output import BatchNote, BatchOutput, ToScore, left_to_do, versions_in
from segmill.serving.batch.scores import ImageStatus, row_of, table_of
from segmill.serving.batch.sources import DATA, BatchImage

if TYPE_CHECKING:
    import pyarrow

PART_IMAGES = 32  # of a part: what a worker that dies, or a run, loses at most
PART_BYTES = 2**24
PARTS_OF_A_WORKER = 4  # at least, so that none waits long for the last
MAPS = 4  # of probabilities in memory at once: a member's, the sum, and what is made from it


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What every worker knows.

    Attributes:
        uri: of MLflow.
        note: which version, of which signed manifest.
        trusted: whose signatures are believed.
        folder: of the version's scores, on storage that every node mounts.
    """

    uri: str
    note: BatchNote
    trusted: TrustedKeys
    folder: Path


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What is asked for.

    Attributes:
        to: folder for the scores of all versions: those of each are in ``version-N``.
        source: of the images, as ``BatchNote`` has it.
        model: the registered model's name.
        asked: an alias or a version number.
        uri: of MLflow.
        trusted: whose signatures are believed.
    """

    to: Path
    source: str
    model: str
    asked: str
    uri: str
    trusted: TrustedKeys


@dataclass(frozen=True)
class BatchPart:
    """Images for one worker; ``losses``: how many died with it."""

    images: tuple[ToScore, ...]
    losses: int = 0

    @property
    def name(self) -> str:
        """Return the hash of what is in it."""
        text = json.dumps([[image.path, image.stamp] for image, _ in self.images])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(eq=False)
class BatchPlan:
    """What there is to do.

    Attributes:
        job: for the workers.
        images: all of the source.
        left: those that need a worker.
        said: sentences for whoever asked.
    """

    job: BatchJob
    images: list[BatchImage]
    left: list[ToScore]
    said: list[str] = field(default_factory=list)

    @property
    def output(self) -> BatchOutput:
        return BatchOutput(self.job.folder)


@contextmanager
def planned(
    request: BatchRequest,
    images: Sequence[BatchImage],
    version_of: Callable[[str], str],
    manifest_of: Callable[[str], str],
) -> Iterator[BatchPlan]:
    """Choose the version, and find what is left to do; nobody else writes to its folder while the block runs.

    A run that did not come to its end is resumed with the version that it began with, whatever the alias names now.

    Args:
        images: of the source.
        version_of: returns the version that an alias names now, or a number itself.
        manifest_of: returns the sha256 of a version's manifest, after its signature was checked.

    Raises:
        InputError: there are no images, or the folder holds scores of something else, or another run writes there.
        Whatever ``version_of`` and ``manifest_of`` raise.
    """
    source, model, asked = request.source, request.model, request.asked
    if not images:
        raise InputError(f"there are no images in {source}", "PNG, JPEG, TIFF, BMP and WebP are read, by their suffix")
    said, version = [], version_of(asked)
    for _, begun in versions_in(request.to):
        same = (begun.asked, begun.model) == (asked, model) and may_share(begun.source, source)
        if same and not begun.finished:
            if begun.version != version:
                said.append(
                    f"the run that began with version {begun.version} is completed with it; {asked} is version "
                    f"{version} now: --version {version}, or another run after this one, scores with that"
                )
            version = begun.version
            break
    output = BatchOutput(request.to / f"version-{version}")
    note = BatchNote(
        source=source, asked=asked, model=model, version=version, manifest_sha256=manifest_of(version), finished=False
    )
    with output.alone():
        before = output.note()
        for name in ("source", "model", "manifest_sha256") if before else ():
            here, wanted = getattr(before, name), getattr(note, name)
            if here != wanted and not (name == "source" and may_share(here, wanted)):
                raise InputError(
                    f"{output.folder} holds scores of another {name.replace('_', ' ')} ({here}, not {wanted})",
                    "name another folder with --to",
                )
        left = left_to_do(output, images)
        if left:
            output.write_note(note)
        job = BatchJob(uri=request.uri, note=note, trusted=request.trusted, folder=output.folder)
        yield BatchPlan(job, list(images), left, said)


def may_share(one: str, other: str) -> bool:
    """Tell whether two sources may have one folder: the same, or data versions, whose images are known by their md5."""
    return one == other or (one.startswith(DATA) and other.startswith(DATA))


def predict_left(
    plan: BatchPlan, classes: int, workers: int | None, on_count: Callable[[int, int], None]
) -> tuple[int, int]:
    """Score what is left, on the Ray that this process is connected to.

    Args:
        classes: of the version.
        workers: how many at most; None: as many as the cluster has room for.
        on_count: is called with how many images are done, of how many.

    Returns:
        How many images were predicted, and by how many workers at most at the same time.

    Raises:
        SignatureError, InputError, SegmillError: the version is not what was signed, or does not load.
        InfrastructureError: MLflow, S3 or the cluster does not answer.
    """
    from segmill.ensembling.predict import PIXELS_AT_ONCE

    job = plan.job
    weights = model_bytes(job.uri, job.note.model, job.note.version, job.trusted)
    memory = BYTES_OF_A_PROCESS + 2 * weights + PIXELS_AT_ONCE * (BYTES_PER_PX + 4 * classes * MAPS)
    free = room(memory)
    most = min(workers or free.workers, free.workers)
    parts = cut_parts(plan.left, most)
    done, predicted = 0, 0
    on_count(0, len(plan.left))
    for part, found in each_part(make_scorer, job, parts, free.each, most):
        if found is None and (found := _written(plan.output, part)) is None:
            if len(part.images) == 1 and part.losses > 1:
                found = _give_up(plan, part)
            else:
                parts.extendleft(_again(part))
                continue
        done, predicted = done + len(part.images), predicted + found
        on_count(done, len(plan.left))
    return predicted, most


def make_scorer(job: BatchJob) -> Callable[[BatchPart], int]:
    """Be what Ray calls in each worker."""
    from segmill.serving.batch.scoring import BatchScorer

    return BatchScorer(job)


def cut_parts(images: Sequence[ToScore], workers: int) -> deque[BatchPart]:
    """Return the images in parts of PART_IMAGES and PART_BYTES at most, in order, enough of them for all workers."""
    most = max(1, min(PART_IMAGES, len(images) // (workers * PARTS_OF_A_WORKER)))
    parts: deque[BatchPart] = deque()
    begun: list[ToScore] = []
    for image in images:
        begun.append(image)
        if len(begun) == most or sum(one.size_bytes for one, _ in begun) >= PART_BYTES:
            parts.append(BatchPart(tuple(begun)))
            begun = []
    if begun:
        parts.append(BatchPart(tuple(begun)))
    return parts


def predicted_of(part: BatchPart, status: Mapping[str, tuple[str, str | None]]) -> int:
    """Return how many images of a part were predicted; ``status``: of each path, and the sha256 of its content."""
    return sum(
        status[image.path][0] == ImageStatus.OK and not (former and former["sha256"] == status[image.path][1])
        for image, former in part.images
    )


def _written(output: BatchOutput, part: BatchPart) -> int | None:
    """Return how many images were predicted of a part whose worker died after it had written it; None: it had not."""
    import pyarrow.parquet as pq

    path = output.part(part.name)
    if not path.is_file():
        return None
    return predicted_of(part, statuses(pq.read_table(path, partitioning=None)))


def statuses(table: pyarrow.Table) -> dict[str, tuple[str, str | None]]:
    """Return status and sha256 of each path."""
    columns = (table[name].to_pylist() for name in ("path", "status", "sha256"))
    return {path: (status, sha256) for path, status, sha256 in zip(*columns, strict=True)}


def _again(part: BatchPart) -> list[BatchPart]:
    """Return what is tried after a part's worker died: the part once more, after that each image by itself."""
    losses = part.losses + 1
    if losses == 1 or len(part.images) == 1:
        return [replace(part, losses=losses)]
    return [BatchPart((image,), losses) for image in part.images]


def _give_up(plan: BatchPlan, part: BatchPart) -> int:
    """Write the row of an image whose worker died each time."""
    import pyarrow.parquet as pq

    ((image, _),) = part.images
    plan.output.drop_mask(image)
    why = "the process that predicted it died each time: it may take more memory than there is"
    with replacing(plan.output.part(part.name)) as draft:
        pq.write_table(table_of([row_of(image, plan.job.note.facts(), ImageStatus.FAILED, why)]), draft)
    return 0
