"""A worker's side of scoring: reads images, asks the version that it loaded, writes masks and the rows of a part."""

from __future__ import annotations

import errno
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segmill.cluster.memory import ran_out_of_memory
from segmill.data.storage.images import encode_png, read_deep_image
from segmill.ensembling.predict import PIXELS_AT_ONCE
from segmill.errors import InputError
from segmill.files import flush_file_system, replacing
from segmill.promotion.keys import SignatureError
from segmill.serving.answers import Wanted
from segmill.serving.batch.output import BatchOutput, ToScore
from segmill.serving.batch.scores import ImageStatus, figures_of, row_of, table_of
from segmill.serving.batch.shell import BatchJob, BatchPart, predicted_of, statuses
from segmill.serving.batch.sources import BatchImage
from segmill.serving.model import load_version

Pixels = NDArray[np.uint8]
AHEAD = 4  # images that are read while one is predicted
MOST_BYTES = 2**29  # of an image file
_OF_THE_NAME = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL)


@dataclass(frozen=True, eq=False)
class ReadImage:
    """What was read: the sha256 of the file, the pixels HWC, C = 3, or why there are none."""

    sha256: str | None
    pixels: Pixels | None
    status: ImageStatus
    reason: str


class BatchScorer:
    """A version in this process, and the folder that its masks and rows are written to.

    Raises:
        SignatureError: it is not what was signed, or not what the run began with.
        SegmillError: it does not load; see ``model.load_version``.
    """

    def __init__(self, job: BatchJob) -> None:
        note = job.note
        self._model = load_version(job.uri, note.model, note.version, job.trusted)
        if self._model.facts.manifest_sha256 != note.manifest_sha256:
            raise SignatureError(f"version {note.version} of {note.model} is another one than when the run began")
        self._names = self._model.facts.classes.names
        self._facts, self._output = note.facts(), BatchOutput(job.folder)

    def __call__(self, part: BatchPart) -> int:
        """Write the masks of a part's images, and then its rows; return how many images were predicted.

        Raises:
            OSError: the folder can't be written, as where the disk is full.
            InfrastructureError: S3 does not answer.
        """
        rows: dict[str, dict[str, Any]] = {}
        waiting: list[tuple[BatchImage, str | None, Pixels]] = []
        for (image, former), read in _read_ahead(part.images):
            if read.pixels is not None:
                waiting.append((image, read.sha256, read.pixels))
                if sum(one.shape[0] * one.shape[1] for _, _, one in waiting) >= PIXELS_AT_ONCE:
                    rows |= self._predicted(waiting)
                    waiting = []
            elif former and read.status == ImageStatus.OK:
                rows[image.path] = {**former, "size_bytes": image.size_bytes, "stamp": image.stamp}
            else:
                self._output.drop_mask(image)
                rows[image.path] = row_of(image, self._facts, read.status, read.reason, sha256=read.sha256)
        rows |= self._predicted(waiting)
        table = table_of([rows[image.path] for image, _ in part.images], self._names)
        flush_file_system(self._output.folder)
        with replacing(self._output.part(part.name)) as draft:
            pq.write_table(table, draft)
        return predicted_of(part, statuses(table))

    def _predicted(self, images: Sequence[tuple[BatchImage, str | None, Pixels]]) -> dict[str, dict[str, Any]]:
        """Write the masks of images that were read, and return their rows by path."""
        if not images:
            return {}
        try:
            every = self._model.segment([pixels for _, _, pixels in images], [Wanted(probabilities=True)] * len(images))
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            if len(images) > 1:
                return {path: row for one in images for path, row in self._predicted([one]).items()}
            ((image, sha256, _),) = images
            self._output.drop_mask(image)
            why = "it takes more memory than there is: cut it into tiles"
            return {image.path: row_of(image, self._facts, ImageStatus.FAILED, why, sha256=sha256)}
        rows = {}
        for (image, sha256, _), segmented in zip(images, every, strict=True):
            try:
                self._output.write_mask(image, encode_png(segmented.ids_HW))
            except OSError as error:
                if error.errno not in _OF_THE_NAME:
                    raise
                why = f"its mask can't be written ({error.strerror})"
                rows[image.path] = row_of(image, self._facts, ImageStatus.FAILED, why, sha256=sha256)
            else:
                figures = figures_of(segmented, self._names)
                rows[image.path] = row_of(image, self._facts, ImageStatus.OK, sha256=sha256, **figures)
        return rows


def _read_ahead(images: Sequence[ToScore]) -> Iterator[tuple[ToScore, ReadImage]]:
    """Yield each image with what was read of it, in order; the next few are read meanwhile."""
    with ThreadPoolExecutor(AHEAD) as threads:
        coming: deque[tuple[ToScore, Future[ReadImage]]] = deque()
        for one in images:
            coming.append((one, threads.submit(_read, *one)))
            if len(coming) > AHEAD:
                first, read = coming.popleft()
                yield first, read.result()
        for first, read in coming:
            yield first, read.result()


def _read(image: BatchImage, former: Mapping[str, Any] | None) -> ReadImage:
    """Read and decode an image, not where its content is that of its earlier row."""
    if image.fault:
        return ReadImage(None, None, ImageStatus.FAILED, image.fault)
    if image.size_bytes > MOST_BYTES:
        why = f"its file has {image.size_bytes} bytes, more than {MOST_BYTES}: cut it into tiles"
        return ReadImage(None, None, ImageStatus.UNREADABLE, why)
    try:
        content = image.read()
    except (OSError, InputError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        return ReadImage(None, None, ImageStatus.FAILED, f"its file can't be read ({why})")
    sha256 = hashlib.sha256(content).hexdigest()
    if former and former["sha256"] == sha256:
        return ReadImage(sha256, None, ImageStatus.OK, "")
    try:
        image_HWC = read_deep_image(content)
    except InputError as error:
        return ReadImage(sha256, None, ImageStatus.UNREADABLE, str(error))
    except MemoryError:
        return ReadImage(sha256, None, ImageStatus.FAILED, "it takes more memory than there is: cut it into tiles")
    colour_HWC = np.repeat(image_HWC, 3, axis=2) if image_HWC.shape[2] == 1 else image_HWC
    return ReadImage(sha256, colour_HWC, ImageStatus.OK, "")
