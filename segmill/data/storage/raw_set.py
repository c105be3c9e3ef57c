"""A labelled set on disk, as loose files or in shards: where the bytes of each sample are, how shards are written."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
INDEX_FILE = "index.parquet"
SHARDS_FOLDER = "packs"
SHARDS_ABOVE = 5_000  # samples; with twice as many files DVC gets slow
SHARD_SAMPLES = 1_000
SHARD_BYTES = 256 * 2**20
_BLOCK = 512  # of a tar
_READ_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Where the bytes of one encoded file are.

    ``name``: what a person calls it, as ``images/a/b.png``. ``file``: what holds it, relative to the set: the file
    itself (then ``offset`` is 0 and ``length`` None, the whole), or a shard.
    """

    name: str
    file: str
    offset: int = 0
    length: int | None = None

    def read(self, root: Path) -> bytes:
        """Return the bytes, of the set at ``root``. OSError where they can't be read; InputError where cut short."""
        with (root / self.file).open("rb") as file:
            file.seek(self.offset)
            content = file.read(-1 if self.length is None else self.length)
        if self.length is not None and len(content) != self.length:
            raise InputError(f"{self.file} ends before {self.name} does", "bring the data version back with DVC")
        return content


@dataclass(frozen=True, slots=True)
class RawSample:
    """One sample: ``id`` is the relative stem with '/', for example ``camera1/0001``."""

    id: str
    image: StoredFile
    mask: StoredFile


def is_sharded(raw_dir: Path) -> bool:
    """Tell whether the set keeps its files in shards (``index.parquet`` and ``packs/``) and not loose."""
    return (raw_dir / INDEX_FILE).is_file()


def sharded_samples(raw_dir: Path) -> Iterator[RawSample]:
    """Yield the samples of a set in shards in order of id."""
    columns = ["id", "pack", *(f"{kind}_{what}" for kind in ("image", "mask") for what in ("name", "offset", "bytes"))]
    for batch in _index_file(raw_dir).iter_batches(batch_size=_READ_ROWS, columns=columns):
        for row in batch.to_pylist():
            shard = sys.intern(row["pack"])  # a thousand samples share the text
            image, mask = (
                StoredFile(row[f"{kind}_name"], shard, row[f"{kind}_offset"], row[f"{kind}_bytes"])
                for kind in ("image", "mask")
            )
            yield RawSample(row["id"], image, mask)


def read_index(raw_dir: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Return the index of a set in shards, all columns or some. InputError where the file is no index."""
    import pyarrow as pa

    try:
        return _index_file(raw_dir).read(columns=columns)
    except pa.ArrowInvalid as error:
        raise InputError(f"{raw_dir / INDEX_FILE} can't be read ({error})", "bring the data version back") from error


def write_index(raw_dir: Path, rows: pyarrow.Table) -> None:
    """Write ``rows`` in order of id as the index; no other reader may be at work in ``raw_dir``."""
    import pyarrow.parquet as pq

    pq.write_table(rows.select(index_schema().names).sort_by("id"), raw_dir / INDEX_FILE, row_group_size=_READ_ROWS)


def index_schema() -> pyarrow.Schema:
    """Return the index's columns: ``pack`` is a shard's path relative to the set; ``ids`` and ``pixels`` count the
    mask's raw values."""
    import pyarrow as pa

    part = {"name": pa.string(), "offset": pa.int64(), "bytes": pa.int64(), "md5": pa.string()}
    columns = {
        "id": pa.string(),
        "pack": pa.string(),
        **{f"{kind}_{what}": of for kind in ("image", "mask") for what, of in part.items()},
        "ids": pa.list_(pa.uint8()),
        "pixels": pa.list_(pa.int64()),
    }
    return pa.schema(list(columns.items()))


class TarShardWriter:
    """Writes samples into shards below ``folder``, in the order they come; holds no more than a shard's rows.

    A shard is a plain tar of at most SHARD_SAMPLES samples or SHARD_BYTES (one larger sample has a shard of its own),
    named by its content, so the same samples in the same order make the same files anywhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / SHARDS_FOLDER
        self.tables: list[pyarrow.Table] = []
        self._draft = self.folder / ".writing"
        self._file: IO[bytes] | None = None
        self._rows: list[dict[str, Any]] = []

    def add(self, sample_id: str, files: Sequence[tuple[str, bytes]]) -> None:
        """Append a sample: name (as ``images/a.png``) and content of its image, then of its mask."""
        size = sum(len(content) for _, content in files) + 4 * _BLOCK
        if self._file and (len(self._rows) == SHARD_SAMPLES or self._file.tell() + size > SHARD_BYTES):
            self._finish()
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._draft.open("wb")
        row: dict[str, Any] = {"id": sample_id}
        for kind, (name, content) in zip(("image", "mask"), files, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            self._file.write(member.tobuf(tarfile.PAX_FORMAT))
            place = {"name": name, "offset": self._file.tell(), "bytes": len(content), "md5": md5_of(content)}
            row |= {f"{kind}_{what}": value for what, value in place.items()}
            self._file.write(content + bytes(-len(content) % _BLOCK))
        self._rows.append(row)

    def close(self) -> pyarrow.Table:
        """Finish the last shard and return the rows of all, in the order of ``add``, without ``ids`` and ``pixels``."""
        import pyarrow as pa

        if self._file is not None:
            self._finish()
        return pa.concat_tables([self._schema().empty_table(), *self.tables])

    def _finish(self) -> None:
        import pyarrow as pa

        assert self._file is not None, "a shard is open"
        self._file.write(bytes(2 * _BLOCK))  # a tar ends so
        self._file.close()
        self._file = None
        with self._draft.open("rb") as file:
            name = f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.tar"
        self._draft.rename(self.folder / name)
        rows = [{**row, "pack": f"{SHARDS_FOLDER}/{name}"} for row in self._rows]
        self.tables.append(pa.Table.from_pylist(rows, schema=self._schema()))
        self._rows = []

    def _schema(self) -> pyarrow.Schema:
        import pyarrow as pa

        return pa.schema([field for field in index_schema() if field.name not in ("ids", "pixels")])


def md5_of(content: bytes) -> str:
    """Return the md5 as DVC writes it, 32 hex digits: it tells files apart, it protects nothing."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _index_file(raw_dir: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(raw_dir / INDEX_FILE)
    except pa.ArrowInvalid as error:
        raise InputError(f"{raw_dir / INDEX_FILE} can't be read ({error})", "bring the data version back") from error
