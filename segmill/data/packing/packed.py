"""Packed splits, read: flat memory-mapped pixels and an index, so that training never decodes.

A split is ``index.parquet``, a row per sample in order of id, and shards ``KEY.bin`` with image HWC uint8 RGB, then
mask HW uint8, sample after sample. The index says in which shard and at which byte a sample begins;
readers need not know how samples are assigned to shards.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

Value = TypeVar("Value")
CHANNELS = 3
BYTES_PER_PX = CHANNELS + 1
MOST_BYTES, MOST_SAMPLES = 2**26, 512  # in a shard
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


class PackedSplit:
    """The samples of one packed split in order of id, and of more folders after it (the augment stage's extras).

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
