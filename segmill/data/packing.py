"""Packed splits: decoded once, then flat memory-mapped pixels and an index, so that training never decodes.

``pack`` turns a checked set into ``train/ val/ test/`` and ``pack.json``. A split is ``index.parquet``, a row per
sample in order of id, and shards ``KEY.bin`` with image HWC uint8 RGB, then mask HW uint8, sample after sample. The
index says in which shard and at which byte a sample begins; how samples are dealt to shards is no one's concern.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from segmill import progress as notes
from segmill.data.chunks import (
    BYTES_PER_PX,
    CHANNELS,
    MOST_BYTES,
    MOST_SAMPLES,
    READ_COLUMNS,
    Chunk,
    Facts,
    Preparation,
    Store,
    Work,
    cut,
    make_shard,
    sample_keys,
)
from segmill.data.manifest import SPLITS, manifest_info, read_manifest
from segmill.data.parallel import BIG, map_ordered
from segmill.data.resizing import Resizing
from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

Value = TypeVar("Value")
OPEN_SHARDS = 256  # maps a process holds at once: each takes a file descriptor, of which there may be 1,024
LAST = "last.json"  # in the store: what the last prepare had to do


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
            _write_index(self._folder, self._rows)
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


def pack(
    raw_dir: Path,
    manifest_path: Path,
    out_dir: Path,
    *,
    size: tuple[int, int] | None,
    resize: Literal["stretch", "fit", "tile"] = "stretch",
    overlap_px: int = 0,
    crop_px: tuple[int, int, int, int] = (0, 0, 0, 0),
    grayscale: bool = False,
    clahe: float = 0.0,
    store_dir: Path | None = None,
    code: str = "",
    jobs: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackInfo:
    """Decode every sample once into ``out_dir``; memory stays bounded, ``pack.json`` comes last.

    Train samples are enhanced, cropped and brought to ``size`` (``Resizing``); val and test stay as they are. Grey is
    repeated to three channels. What comes out depends on the manifest and the settings alone.

    Args:
        raw_dir: the set that ``manifest_path`` was made of.
        out_dir: a temporary folder that the caller renames when everything is in it.
        size: height and width in px of every train sample; None keeps each image's own.
        grayscale, clahe: as ``enhance``.
        store_dir: where shards outlive this call: those that are there already are linked, samples that lie in another
            are copied, only the rest is decoded. Shards that this set does not need are deleted at the end.
        code: changes where the code does that makes pixels; shards made by another are not used.
        jobs: processes; 0 takes all CPUs where more than BIG samples are to be made.
        progress: called with samples done and samples in all.

    Raises:
        InputError: a file is not what validation saw, or cropping leaves nothing of an image.
    """
    table = read_manifest(manifest_path)
    info = manifest_info(table)
    train = Preparation(Resizing(size, resize, overlap_px, crop_px), grayscale, clahe, info.ignore_id)
    plans = {split: _plan(table, split, train if split == "train" else Preparation(), code) for split in SPLITS}
    del table
    with _store(store_dir, out_dir) as store:
        _make_missing(raw_dir, store, list(plans.values()), jobs, progress)
        packed = {split: _lay_out(store, plan, out_dir / split) for split, plan in plans.items()}
        if store_dir is not None:
            store.keep([Path(LAST).stem, *(chunk.key for plan in plans.values() for chunk in plan.chunks)])
    mean, std = _mean_std(packed["train"].values)
    pack_info = PackInfo(
        info.name,
        info.class_names,
        info.colors,
        info.ignore_id,
        size,
        mean,
        std,
        tuple(int(n) for n in packed["train"].ids[: info.num_classes]),
        {split: split_facts.samples for split, split_facts in packed.items()},
        grayscale=grayscale,
        clahe=clahe,
    )
    (out_dir / "pack.json").write_text(json.dumps(asdict(pack_info), indent=1) + "\n")
    return pack_info


def read_pack(out_dir: Path) -> PackInfo:
    """Read ``pack.json``; InputError where there is none."""
    try:
        content = json.loads((out_dir / "pack.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"{out_dir} holds no packed splits (no pack.json); run the prepare stage first") from error
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return PackInfo(**facts)


class _Plan(NamedTuple):
    """A split's manifest rows in order of pack and id, a key for each, and the chunks they make."""

    rows: pyarrow.Table
    keys: list[str]
    chunks: list[Chunk]
    preparation: Preparation


def _plan(table: pyarrow.Table, split: str, preparation: Preparation, code: str) -> _Plan:
    import pyarrow.compute as pc

    rows = table.filter(pc.equal(table["split"], split)).select(["id", "group", "height", "width", *READ_COLUMNS])
    pack_file = pc.if_else(pc.is_null(rows["image_bytes"]), "", rows["image_file"])
    rows = rows.append_column("pack", pack_file).sort_by([("pack", "ascending"), ("id", "ascending")])
    keys = sample_keys(rows, preparation, code)
    return _Plan(rows, keys, cut(rows, keys, preparation.resizing), preparation)


@contextmanager
def _store(store_dir: Path | None, out_dir: Path) -> Iterator[Store]:
    if store_dir is not None:
        yield Store(store_dir)
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}.") as folder:
        yield Store(Path(folder))


def _make_missing(
    raw_dir: Path, store: Store, plans: list[_Plan], jobs: int, progress: Callable[[int, int], None]
) -> None:
    """Make the shards that the store lacks, each by one process, and note there what that took."""
    missing = {chunk.key: (plan, chunk) for plan in plans for chunk in plan.chunks if store.facts(chunk.key) is None}
    wanted = {key for plan, chunk in missing.values() for key in plan.keys[chunk.start : chunk.stop]}
    known = store.find(wanted)
    samples = sum(len(plan.keys) for plan in plans)
    to_make = sum(chunk.stop - chunk.start for _, chunk in missing.values())
    if jobs == 0:
        jobs = len(os.sched_getaffinity(0)) if to_make > BIG else 1
    works = _Works(list(missing.values()), known)
    done = samples - to_make
    progress(done, samples)
    made = map_ordered(functools.partial(make_shard, raw_dir, store.folder), works, jobs=jobs)
    for (_, chunk), _ in zip(missing.values(), made, strict=True):
        done += chunk.stop - chunk.start
        progress(done, samples)
    decoded = sum(key not in known for plan, chunk in missing.values() for key in plan.keys[chunk.start : chunk.stop])
    shards = len({chunk.key for plan in plans for chunk in plan.chunks})
    notes.report(store.folder / LAST, samples=samples, decoded=decoded, shards=shards, written=len(missing))


class _Works(Sequence[Work]):
    """The shards to make; a work is spelled out when it is asked for, so that few are in memory."""

    def __init__(self, chunks: list[tuple[_Plan, Chunk]], known: dict[str, tuple[str, int]]) -> None:
        self._chunks = chunks
        self._known = known

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        plan, chunk = self._chunks[index]
        keys = plan.keys[chunk.start : chunk.stop]
        rows = plan.rows.slice(chunk.start, chunk.stop - chunk.start).select(READ_COLUMNS).to_pylist()
        return Work(chunk.key, rows, keys, [self._known.get(key) for key in keys], plan.preparation)


class _SplitFacts(NamedTuple):
    samples: int
    values: NDArray[np.int64]  # C x 256, how often a channel takes a value
    ids: NDArray[np.int64]  # 256, how often a mask takes an id


def _lay_out(store: Store, plan: _Plan, folder: Path) -> _SplitFacts:
    """Link a split's shards into ``folder`` and write its index."""
    folder.mkdir(parents=True, exist_ok=True)
    all_facts: list[Facts] = []
    for chunk in plan.chunks:
        facts = store.facts(chunk.key)
        assert facts is not None, "just made"
        all_facts.append(facts)
    for key in {chunk.key for chunk in plan.chunks}:  # chunks of the same bytes share a shard
        store.link(key, folder)
    pieces = np.concatenate([np.empty((0, 6), np.int64), *(facts.pieces for facts in all_facts)])
    counts = [len(facts.pieces) for facts in all_facts]
    row = pieces[:, 0] + np.repeat([chunk.start for chunk in plan.chunks], counts).astype(np.int64)
    columns: dict[str, Any] = {
        "id": plan.rows["id"].take(row),
        "group": plan.rows["group"].take(row),
        "shard": np.repeat([chunk.key for chunk in plan.chunks], counts).astype(str),
        "offset": np.concatenate([np.empty(0, np.int64), *(facts.offsets[:-1] for facts in all_facts)]),
        "height": pieces[:, 1],
        "width": pieces[:, 2],
    }
    if plan.preparation.resizing.resize == "tile":
        columns |= {"source": columns["id"], "top": pieces[:, 3], "left": pieces[:, 4]}
        columns["id"] = _tile_ids(columns["id"].to_pylist(), np.bincount(row), row, pieces)
    _write_index(folder, columns)
    values, ids = np.zeros((CHANNELS, 256), np.int64), np.zeros(256, np.int64)
    for facts in all_facts:
        values += facts.values
        ids += facts.ids
    return _SplitFacts(len(pieces), values, ids)


def _tile_ids(
    ids: list[str], pieces_of: NDArray[np.int64], row: NDArray[np.int64], pieces: NDArray[np.int64]
) -> list[str]:
    """Return ``ID@TOP_LEFT`` for the tiles of an image that was cut, ``ID`` for one that is whole."""
    places = zip(ids, pieces_of[row] > 1, pieces[:, 3].tolist(), pieces[:, 4].tolist(), strict=True)
    return [f"{sample_id}@{top}_{left}" if was_cut else sample_id for sample_id, was_cut, top, left in places]


def _mean_std(values: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel mean and standard deviation from C x 256 counts, of values scaled to 0..1."""
    levels = np.arange(256) / 255
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    return tuple(float(m) for m in mean), tuple(float(s) for s in std)


def _write_index(folder: Path, columns: dict[str, Any]) -> None:
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
        raise InputError(f"{folder} is no packed split (no index.parquet); run the prepare stage first") from error
    keys, shard = _numbered(table["shard"])
    groups, group = _numbered(table["group"])
    offset, height, width = (table[name].to_numpy() for name in ("offset", "height", "width"))
    ends = np.zeros(len(keys), np.int64)
    np.maximum.at(ends, shard, offset + height * width * BYTES_PER_PX)
    shards = [folder / f"{key}.bin" for key in keys]
    for path, end in zip(shards, ends.tolist(), strict=True):
        if not path.is_file() or path.stat().st_size < end:  # longer is fine: an index may leave samples out
            raise InputError(f"{path} is missing or cut short ({end} bytes expected); prepare again")
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
