"""Packing: every sample of a checked set decoded once, what an earlier version decoded taken over.

``pack`` makes ``train/ val/ test/``, each a packed split, and ``pack.json``.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill import progress as notes
from segmill.data.packing.packed import PackInfo, write_index
from segmill.data.packing.resizing import Resizing
from segmill.data.packing.shards import (
    CHANNELS,
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
from segmill.data.schema.manifest import SPLITS, manifest_info, read_manifest
from segmill.data.storage.parallel import BIG, map_ordered

if TYPE_CHECKING:
    import pyarrow

LAST = "last.json"  # in the store: what the last prepare had to do


def pack(
    raw_dir: Path,
    manifest_path: Path,
    out_dir: Path,
    *,
    size: tuple[int, int] | None,
    resize: Literal["stretch", "fit", "tile"] = "stretch",
    overlap_px: int = 0,
    border_crop_px: tuple[int, int, int, int] = (0, 0, 0, 0),
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
    train = Preparation(Resizing(size, resize, overlap_px, border_crop_px), grayscale, clahe, info.ignore_id)
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
    write_index(folder, columns)
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
