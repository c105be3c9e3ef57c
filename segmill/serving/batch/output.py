"""Where scores are written: a folder for each version that says what it is of, and what is known when a run resumes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill.errors import InputError
from segmill.files import replacing, write_atomically
from segmill.serving.batch.scores import ImageStatus
from segmill.serving.batch.sources import BatchImage

if TYPE_CHECKING:
    import pyarrow

NOTE = "run.json"

# An image, and its earlier row where its content may be the same.
ToScore = tuple[BatchImage, Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class BatchNote:
    """What a folder of scores is of: ``run.json``.

    Attributes:
        source: of the images: an absolute folder, s3://BUCKET/PREFIX, or ``data:`` and the md5 of a data version.
        asked: how the version was named when it began: an alias or a number.
        model, version: in the registry.
        manifest_sha256: of the version's signed manifest.
        finished: every image has its row in ``scores.parquet``.
    """

    source: str
    asked: str
    model: str
    version: str
    manifest_sha256: str
    finished: bool

    def facts(self) -> dict[str, str]:
        """Return what each row says of the model."""
        return {"model": self.model, "version": self.version, "manifest_sha256": self.manifest_sha256}


@dataclass(frozen=True)
class BatchOutput:
    """The folder with the scores of one version: ``masks/``, ``scores.parquet``, ``run.json``, and hidden parts.

    A part is the rows of a few images, written when their masks are on the disk; at the end all become one table.
    """

    folder: Path

    @property
    def masks(self) -> Path:
        return self.folder / "masks"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.parquet"

    def part(self, name: str) -> Path:
        """Return where the rows of the part ``name`` are."""
        return self.folder / ".parts" / f"{name}.parquet"

    def note(self) -> BatchNote | None:
        """Return what the folder is of; None where nothing was written yet."""
        try:
            return BatchNote(**json.loads((self.folder / NOTE).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.folder / NOTE} is damaged ({error})", "name another folder with --to") from None

    def write_note(self, note: BatchNote) -> None:
        write_atomically(self.folder / NOTE, json.dumps(asdict(note), indent=2) + "\n")

    def write_mask(self, image: BatchImage, png: bytes) -> None:
        """Write an image's mask in one step, not yet flushed to the disk.

        ``files.replacing`` would look through the folder for the drafts of others at each of its many masks: here they
        are in a folder of their own, which the next run deletes.
        """
        path, draft = self.masks / image.mask, self.folder / ".drafts" / secrets.token_hex(8)
        for folder in (path.parent, draft.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(png)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def drop_mask(self, image: BatchImage) -> None:
        """Delete a mask that is no more of what the image is."""
        if not image.fault:
            (self.masks / image.mask).unlink(missing_ok=True)

    def drop_drafts(self) -> None:
        shutil.rmtree(self.folder / ".drafts", ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only run that writes here while the block runs; InputError where another one does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another run writes to {self.folder}", "wait until it is done") from None
            self.drop_drafts()
            yield
        finally:
            os.close(number)

    def rows(self) -> pyarrow.Table | None:
        """Return the rows of ``scores.parquet`` and of all parts after it; None where there are none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        paths = [self.scores, *sorted((self.folder / ".parts").glob("[!.]*.parquet"))]
        tables = [pq.read_table(path, partitioning=None) for path in paths if path.is_file()]
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def finish(self, images: Sequence[BatchImage], note: BatchNote) -> pyarrow.Table:
        """Write ``scores.parquet`` with the row of each image, in order, and ``run.json``; return that table.

        Raises InputError where an image has no row.
        """
        import pyarrow.parquet as pq

        rows = self.rows()
        numbers = row_numbers(rows)
        lacking = [image.path for image in images if (image.path, image.stamp) not in numbers]
        if rows is None or lacking:
            raise InputError(f"{len(lacking)} images have no scores yet ({lacking[0]})", "run again")
        table = rows.take([numbers[image.path, image.stamp] for image in images])
        with replacing(self.scores) as draft:
            pq.write_table(table, draft)
        self.write_note(note)
        shutil.rmtree(self.folder / ".parts", ignore_errors=True)
        self.drop_drafts()
        return table


def row_numbers(rows: pyarrow.Table | None) -> dict[tuple[str, str], int]:
    """Return the number of each row by path and stamp, of several the last one's."""
    if rows is None:
        return {}
    keys = zip(rows["path"].to_pylist(), rows["stamp"].to_pylist(), strict=True)
    return {key: number for number, key in enumerate(keys)}


def left_to_do(output: BatchOutput, images: Sequence[BatchImage]) -> list[ToScore]:
    """Return the images that need a worker.

    An image is done where its row is of the same stamp, and its mask is there, or it is known to be none.
    """
    rows = output.rows()
    if rows is None:
        return [(image, None) for image in images]
    numbers, status = row_numbers(rows), rows["status"].to_pylist()
    latest = {path: number for (path, _), number in sorted(numbers.items(), key=lambda one: one[1])}
    found: list[ToScore] = []
    for image in images:
        there = not image.fault and (output.masks / image.mask).is_file()
        number = numbers.get((image.path, image.stamp))
        if number is not None and (
            status[number] == ImageStatus.UNREADABLE or (status[number] == ImageStatus.OK and there)
        ):
            continue
        former = latest.get(image.path)
        same = former is not None and status[former] == ImageStatus.OK and there
        found.append((image, rows.slice(former, 1).to_pylist()[0] if same else None))
    return found


def versions_in(to: Path) -> list[tuple[BatchOutput, BatchNote]]:
    """Return the folders of versions in ``to`` and what they are of, the one that was written last first."""
    found = [BatchOutput(path.parent) for path in to.glob(f"version-*/{NOTE}")]
    found.sort(key=lambda one: (one.folder / NOTE).stat().st_mtime_ns, reverse=True)
    return [(one, note) for one in found if (note := one.note())]
