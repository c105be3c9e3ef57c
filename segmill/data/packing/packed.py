"""Packed splits, read and written: flat memory-mapped pixels and an index, so that training never decodes.

A split is ``index.parquet``, a row per sample in order of id, and shards ``KEY.bin`` with image HWC uint8 RGB, then
mask HW uint8, sample after sample. The index says in which shard and at which byte a sample begins; how samples are
dealt to shards is no one's concern.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.shards import BYTES_PER_PX, CHANNELS, MOST_BYTES, MOST_SAMPLES
from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

Value = TypeVar("Value")
OPEN_SHARDS = 256  # maps a process holds at once: each takes a file descriptor, of which there may be 1,024


@dataclass(frozen=True)
class PackInfo:
    """What the packed splits hold.

    ``size``: height and width in px of every train sample, or None where they keep their own. ``mean`` and ``std`` are
    per channel of train, of values scaled to 0..1, without what was filled up. ``class_pixels`` are train's, after
    resizing, in order of id. ``samples`` counts a split's samples, tiles each. ``grayscale`` and ``clahe`` were done to
    train; val and test wait for whoever predicts to do it.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[str, ...]
    ignore_id: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_pixels: tuple[int, ...]
    samples: dict[str, int]
    channels: int = CHANNELS
    grayscale: bool = False
    clahe: float = 0.0

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


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


class PackedSplit:
    """The samples of one packed split in order of id, and of further folders after it (the augment stage's extras).

    Pixels are views of read-only memory maps, opened on first use in each process; an instance pickles as its folders.
    InputError where a folder holds no index or a shard is cut short.
    """

    def __init__(self, folder: Path, *more: Path) -> None:
        self._folders = (folder, *more)
        indexes = [_read_index(path) for path in self._folders]
        self.ids: list[str] = [sample_id for index in indexes for sample_id in index.ids]
        self._offset, self._height, self._width = (
            np.concatenate([getattr(index, name) for index in indexes]) for name in ("offset", "height", "width")
        )
        self._shards, self._shard = _joined([(index.shards, index.shard) for index in indexes])
        self._groups, self._group = _joined([(index.groups, index.group) for index in indexes])
        self._map = functools.lru_cache(OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[type[PackedSplit], tuple[Path, ...]]:
        return PackedSplit, self._folders

    @property
    def groups(self) -> list[str]:
        """Return the group of every sample."""
        return [self._groups[number] for number in self._group.tolist()]

    def sizes(self) -> list[tuple[int, int]]:
        """Return the heights and widths in px that occur, in order."""
        both, width = np.divmod(np.unique(self._height << 32 | self._width), 1 << 32)
        return list(zip(both.tolist(), width.tolist(), strict=True))

    def shape(self, index: int) -> tuple[int, int]:
        """Return height and width in px of sample ``index``, without touching its pixels."""
        return int(self._height[index]), int(self._width[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image of sample ``index``: HWC uint8 RGB, a read-only view."""
        height, width = self.shape(index)
        start, length = int(self._offset[index]), height * width * CHANNELS
        return self._map(int(self._shard[index]))[start : start + length].reshape(height, width, CHANNELS)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of sample ``index``: HW uint8 class ids, a read-only view."""
        height, width = self.shape(index)
        start = int(self._offset[index]) + height * width * CHANNELS
        return self._map(int(self._shard[index]))[start : start + height * width].reshape(height, width)

    def _open_shard(self, number: int) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(self._shards[number], dtype=np.uint8, mode="r"))


def read_pack(out_dir: Path) -> PackInfo:
    """Read ``pack.json``; InputError where there is none."""
    try:
        content = json.loads((out_dir / "pack.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"{out_dir} holds no packed splits (no pack.json)", "run the prepare stage first") from error
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return PackInfo(**facts)


def write_index(folder: Path, columns: dict[str, Any]) -> None:
    """Write a split's index: ``id``, ``group``, ``shard``, ``offset``, ``height``, ``width``, for tiles more."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(("id", "group", "shard", "source"), pa.string())
    schema = pa.schema([(name, types.get(name, pa.int64())) for name in columns])
    table = pa.table(columns, schema=schema).sort_by([(name, "ascending") for name in ("id", "shard", "offset")])
    pq.write_table(table, folder / "index.parquet")


class _Index(NamedTuple):
    """A split's index as columns; ``shard`` and ``group`` are numbers into ``shards`` and ``groups``."""

    ids: list[str]
    shards: list[Path]
    shard: NDArray[np.int32]
    groups: list[str]
    group: NDArray[np.int32]
    offset: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]


def _read_index(folder: Path) -> _Index:
    import pyarrow.parquet as pq

    columns = ["id", "group", "shard", "offset", "height", "width"]
    try:
        table = pq.read_table(folder / "index.parquet", columns=columns, read_dictionary=["group", "shard"])
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no packed split (no index.parquet)", "run the prepare stage first") from error
    keys, shard = _numbered(table["shard"])
    groups, group = _numbered(table["group"])
    offset, height, width = (table[name].to_numpy() for name in ("offset", "height", "width"))
    ends = np.zeros(len(keys), np.int64)
    np.maximum.at(ends, shard, offset + height * width * BYTES_PER_PX)
    shards = [folder / f"{key}.bin" for key in keys]
    for path, end in zip(shards, ends.tolist(), strict=True):
        if not path.is_file() or path.stat().st_size < end:  # longer is fine: an index may leave samples out
            raise InputError(f"{path} is missing or cut short ({end} bytes expected)", "prepare again")
    return _Index(table["id"].to_numpy().tolist(), shards, shard, groups, group, offset, height, width)


def _numbered(column: pyarrow.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    """Return the values that occur, and for each row the number of its value."""
    encoded = column.unify_dictionaries().combine_chunks()
    if not len(encoded):
        return [], np.empty(0, np.int32)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _joined(parts: list[tuple[list[Value], NDArray[np.int32]]]) -> tuple[list[Value], NDArray[np.int32]]:
    """Put lists of values, and numbers into each, after one another."""
    values = [value for some, _ in parts for value in some]
    starts = np.cumsum([0, *(len(some) for some, _ in parts)])
    numbers = [number + start for (_, number), start in zip(parts, starts[:-1], strict=True)]
    return values, np.concatenate(numbers).astype(np.int32)
