"""Packed splits written sample by sample, in any order, for whoever has the pixels already."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.packed import BYTES_PER_PX, CHANNELS, MOST_BYTES, MOST_SAMPLES


class Sample(NamedTuple):
    """One decoded sample: image HWC uint8 RGB, mask HW uint8."""

    id: str
    group: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


class SplitWriter:
    """Writes one packed split sample by sample, in any order.

    Shards are named by their content; the index comes last, on leaving the ``with`` block without error.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, list[Any]] = {name: [] for name in ("id", "group", "shard", "offset", "height", "width")}
        self._open: list[tuple[str, str, int, int, int]] = []  # rows of the shard that is being written
        self._draft = folder / ".shard.tmp"

    def __enter__(self) -> SplitWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        for former in (self._folder / "index.parquet", *self._folder.glob("*.bin")):
            former.unlink(missing_ok=True)
        self._begin()
        return self

    def add(self, sample: Sample) -> None:
        """Append one sample; ValueError where image and mask are not HxWx3 and HxW uint8."""
        height, width = sample.mask.shape
        if sample.image.shape != (height, width, CHANNELS):
            raise ValueError(f"{sample.id}: image {sample.image.shape} does not go with mask {sample.mask.shape}")
        if sample.image.dtype != np.uint8 or sample.mask.dtype != np.uint8:
            raise ValueError(f"{sample.id}: image {sample.image.dtype} and mask {sample.mask.dtype} must be uint8")
        if self._open and (len(self._open) == MOST_SAMPLES or self._end + height * width * BYTES_PER_PX > MOST_BYTES):
            self._finish()
            self._begin()
        self._open.append((sample.id, sample.group, self._end, height, width))
        for pixels in (sample.image, sample.mask):
            content = np.ascontiguousarray(pixels).data
            self._file.write(content)
            self._digest.update(content)
            self._end += content.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
            write_index(self._folder, self._rows)
        else:
            self._file.close()
            self._draft.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._file = self._draft.open("wb")
        self._digest = hashlib.sha256()
        self._end = 0

    def _finish(self) -> None:
        self._file.close()
        if not self._open:
            self._draft.unlink()
            return
        key = self._digest.hexdigest()[:32]
        self._draft.replace(self._folder / f"{key}.bin")
        for sample_id, group, offset, height, width in self._open:
            for column, value in zip(self._rows.values(), (sample_id, group, key, offset, height, width), strict=True):
                column.append(value)
        self._open = []


def write_index(folder: Path, columns: dict[str, Any]) -> None:
    """Write a split's index: ``id``, ``group``, ``shard``, ``offset``, ``height``, ``width``, for tiles more."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(("id", "group", "shard", "source"), pa.string())
    schema = pa.schema([(name, types.get(name, pa.int64())) for name in columns])
    table = pa.table(columns, schema=schema).sort_by([(name, "ascending") for name in ("id", "shard", "offset")])
    pq.write_table(table, folder / "index.parquet")
