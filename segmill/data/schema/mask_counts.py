"""How many pixels of each raw value a mask holds: one mask, many on all CPUs, and the sums per group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import DatasetInfo
from segmill.data.storage.images import read_mask
from segmill.data.storage.parallel import map_ordered
from segmill.data.storage.raw_set import StoredFile
from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

RAW_VALUES = 256
_AT_ONCE = 32  # masks per message to another process

Count = tuple[list[int], list[int]]  # raw values that occur, ascending, and the number of pixels of each


def count_mask(content: bytes) -> Count:
    """Return what an encoded mask holds; two empty lists for one that can't be read, which validate reports."""
    try:
        pixels = np.bincount(read_mask(content).ravel(), minlength=RAW_VALUES)
    except InputError:
        return [], []
    ids = np.flatnonzero(pixels)
    return ids.tolist(), pixels[ids].tolist()


def count_masks(masks: Sequence[tuple[Path, StoredFile]]) -> Iterator[Count]:
    """Yield what each mask holds, in order, on all CPUs where there are many. ``masks``: folder and part of each."""
    return map_ordered(_count_part, masks, chunk=_AT_ONCE)


def _count_part(mask: tuple[Path, StoredFile]) -> Count:
    root, part = mask
    return count_mask(part.read(root))


def append_counts(rows: pyarrow.Table, counts: Sequence[Count]) -> pyarrow.Table:
    """Return ``rows`` with the columns ``ids`` (list of uint8) and ``pixels`` (list of int64)."""
    import pyarrow as pa

    ids, pixels = ([count[place] for count in counts] for place in (0, 1))
    rows = rows.append_column("ids", pa.array(ids, pa.list_(pa.uint8())))
    return rows.append_column("pixels", pa.array(pixels, pa.list_(pa.int64())))


def total_pixels(rows: pyarrow.Table) -> NDArray[np.int64]:
    """Return the number of pixels of each raw value, 256 of them, over all ``rows`` (with ``ids`` and ``pixels``)."""
    total = np.zeros(RAW_VALUES, np.int64)
    _, raw, pixels = _flat(rows)
    np.add.at(total, raw, pixels)
    return total


def group_pixels(info: DatasetInfo, rows: pyarrow.Table) -> dict[str, NDArray[np.int64]]:
    """Return group -> K class pixel counts over ``rows`` (``id``, ``ids``, ``pixels``); samples without a group left
    out, as are values that are no class."""
    places: dict[str | None, int] = {}
    group_N = np.array([places.setdefault(info.group_of(name), len(places)) for name in rows["id"].to_pylist()], int)
    lengths, raw, pixels = _flat(rows)
    group_F, known = np.repeat(group_N, lengths), raw < info.num_classes
    total_GK = np.zeros((len(places), info.num_classes), np.int64)
    np.add.at(total_GK, (group_F[known], raw[known]), pixels[known])
    return {group: total_GK[place] for group, place in places.items() if group is not None}


def _flat(rows: pyarrow.Table) -> tuple[Any, Any, Any]:
    import pyarrow.compute as pc

    lengths = pc.list_value_length(rows["ids"]).to_numpy()
    return lengths, pc.list_flatten(rows["ids"]).to_numpy(), pc.list_flatten(rows["pixels"]).to_numpy()
