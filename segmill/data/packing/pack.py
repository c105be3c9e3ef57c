"""Packing: every sample of a checked set decoded once, what an earlier version decoded taken over.

``pack`` makes ``train/ val/ test/``, each a packed split, and ``pack.json``; and ``calibration/`` where some groups are
kept for that.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.calibration import CALIBRATION, write_values
from segmill.data.packing.packed import CHANNELS, PackInfo
from segmill.data.packing.shards import (
    AS_THEY_ARE,
    READ_COLUMNS,
    Preparation,
    ShardFacts,
    ShardJob,
    ShardRows,
    ShardStore,
    cut,
    make_shard,
    sample_keys,
)
from segmill.data.packing.writing import write_index
from segmill.data.schema.manifest import SPLITS, manifest_info, read_manifest
from segmill.data.schema.slices import slice_values
from segmill.data.storage.parallel import BIG, map_ordered
from segmill.files import write_atomically

if TYPE_CHECKING:
    import pyarrow

LAST = "last.json"  # in the store: what the last prepare had to do


def pack(
    raw_dir: Path,
    manifest_path: Path,
    out_dir: Path,
    *,
    train: Preparation = AS_THEY_ARE,
    calibration: Collection[str] = (),
    by: str | None = None,
    store_dir: Path | None = None,
    code: str = "",
    jobs: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackInfo:
    """Decode every sample once into ``out_dir``; memory stays bounded, ``pack.json`` comes last.

    Train samples are prepared as ``train`` says; val and test stay as they are. Grey is repeated to three channels.
    What comes out depends on the manifest and the settings alone. More than eight parameters: each is a setting of its
    own, or says where, how and to whom.

    Args:
        raw_dir: the set that ``manifest_path`` was made of.
        out_dir: a temporary folder that the caller renames when everything is in it.
        train: crop, resizing and enhancement of the train samples; the ignore id is the set's.
        calibration: groups that are packed as ``calibration``, as they are, and not with their split.
        by: column of the manifest whose values of these samples are kept, for ``calibration.read_values``.
        store_dir: where shards outlive this call: those that are there already are linked, samples that another holds
            are copied, only the rest is decoded. A shard whose bytes are not those that were written is made again.
            Shards that this set does not need are deleted at the end.
        code: changes where the code does that makes pixels; shards made by another are not used.
        jobs: processes; 0 takes all CPUs where more than BIG samples are to be made.
        on_progress: called with samples done and samples in all.

    Raises:
        InputError: a file is not what validation saw, cropping leaves nothing of an image, or ``by`` is no column that
            can be used.
    """
    table = _apart(read_manifest(manifest_path), calibration)
    info = manifest_info(table)
    train = replace(train, ignore_id=info.ignore_id)
    plans = {split: _plan(table, split, train if split == "train" else AS_THEY_ARE, code) for split in SPLITS}
    if calibration:
        plans[CALIBRATION] = _plan(table, CALIBRATION, AS_THEY_ARE, code)
    del table
    with _store(store_dir, out_dir) as store:
        _make_missing(raw_dir, store, list(plans.values()), jobs, on_progress)
        packed = {split: _lay_out(store, plan, out_dir / split) for split, plan in plans.items()}
        if store_dir is not None:
            store.keep([Path(LAST).stem, *(shard.key for plan in plans.values() for shard in plan.shards)])
    if calibration and by:
        ids = plans[CALIBRATION].rows["id"].to_pylist()
        values = slice_values(manifest_path, ids, [by], setting="anomaly.by")[by]
        write_values(out_dir, dict(zip(ids, values, strict=True)))
    mean, std = _mean_std(packed["train"].values)
    pack_info = PackInfo(
        info.name,
        info.class_names,
        info.colors,
        info.ignore_id,
        train.resizing.size,
        mean,
        std,
        tuple(int(n) for n in packed["train"].ids[: info.num_classes]),
        {split: split_facts.samples for split, split_facts in packed.items()},
        grayscale=train.grayscale,
        clahe=train.clahe,
    )
    (out_dir / "pack.json").write_text(json.dumps(asdict(pack_info), indent=1) + "\n")
    return pack_info


def _apart(table: pyarrow.Table, groups: Collection[str]) -> pyarrow.Table:
    """Return the manifest with the rows of some groups in the split ``calibration``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not groups:
        return table
    split = pc.if_else(pc.is_in(table["group"], pa.array(sorted(groups))), CALIBRATION, table["split"])
    return table.set_column(table.column_names.index("split"), "split", split)


class _Plan(NamedTuple):
    """A split's manifest rows in order of pack and id, a key for each, and the shards they make."""

    rows: pyarrow.Table
    keys: list[str]
    shards: list[ShardRows]
    preparation: Preparation


def _plan(table: pyarrow.Table, split: str, preparation: Preparation, code: str) -> _Plan:
    import pyarrow.compute as pc

    rows = table.filter(pc.equal(table["split"], split)).select(["id", "group", "height", "width", *READ_COLUMNS])
    pack_file = pc.if_else(pc.is_null(rows["image_bytes"]), "", rows["image_file"])
    rows = rows.append_column("pack", pack_file).sort_by([("pack", "ascending"), ("id", "ascending")])
    keys = sample_keys(rows, preparation, code)
    return _Plan(rows, keys, cut(rows, keys, preparation.resizing), preparation)


@contextmanager
def _store(store_dir: Path | None, out_dir: Path) -> Iterator[ShardStore]:
    if store_dir is not None:
        yield ShardStore(store_dir)
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}.") as folder:
        yield ShardStore(Path(folder))


def _make_missing(
    raw_dir: Path, store: ShardStore, plans: list[_Plan], jobs: int, on_progress: Callable[[int, int], None]
) -> None:
    """Make the shards that the store lacks, each by one process, and note there what that took."""
    damaged = store.remove_damaged({shard.key for plan in plans for shard in plan.shards})
    missing = {shard.key: (plan, shard) for plan in plans for shard in plan.shards if store.facts(shard.key) is None}
    wanted = {key for plan, shard in missing.values() for key in plan.keys[shard.start : shard.stop]}
    known = store.find(wanted)
    samples = sum(len(plan.keys) for plan in plans)
    to_make = sum(shard.stop - shard.start for _, shard in missing.values())
    if jobs == 0:
        jobs = len(os.sched_getaffinity(0)) if to_make > BIG else 1
    jobs_to_do = _ShardJobs(list(missing.values()), known)
    done = samples - to_make
    on_progress(done, samples)
    made = map_ordered(functools.partial(make_shard, raw_dir, store.folder), jobs_to_do, jobs=jobs)
    for (_, shard), _ in zip(missing.values(), made, strict=True):
        done += shard.stop - shard.start
        on_progress(done, samples)
    decoded = sum(key not in known for plan, shard in missing.values() for key in plan.keys[shard.start : shard.stop])
    shards = len({shard.key for plan in plans for shard in plan.shards})
    facts = {"samples": samples, "decoded": decoded, "shards": shards, "written": len(missing), "damaged": damaged}
    write_atomically(store.folder / LAST, json.dumps(facts), durable=False)


class _ShardJobs(Sequence[ShardJob]):
    """The shards to make; a job is spelled out when it is asked for, so that few are in memory."""

    def __init__(self, shards: list[tuple[_Plan, ShardRows]], known: dict[str, tuple[str, int]]) -> None:
        self._shards = shards
        self._known = known

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        plan, shard = self._shards[index]
        keys = plan.keys[shard.start : shard.stop]
        rows = plan.rows.slice(shard.start, shard.stop - shard.start).select(READ_COLUMNS).to_pylist()
        return ShardJob(shard.key, rows, keys, [self._known.get(key) for key in keys], plan.preparation)


class _SplitFacts(NamedTuple):
    samples: int
    values: NDArray[np.int64]  # C x 256, how often a channel takes a value
    ids: NDArray[np.int64]  # 256, how often a mask takes an id


def _lay_out(store: ShardStore, plan: _Plan, folder: Path) -> _SplitFacts:
    """Link a split's shards into ``folder`` and write its index."""
    folder.mkdir(parents=True, exist_ok=True)
    all_facts: list[ShardFacts] = []
    for shard in plan.shards:
        facts = store.facts(shard.key)
        assert facts is not None, "just made"
        all_facts.append(facts)
    for key in {shard.key for shard in plan.shards}:  # rows of the same bytes share one
        store.link(key, folder)
    pieces = np.concatenate([np.empty((0, 6), np.int64), *(facts.pieces for facts in all_facts)])
    counts = [len(facts.pieces) for facts in all_facts]
    row = pieces[:, 0] + np.repeat([shard.start for shard in plan.shards], counts).astype(np.int64)
    columns: dict[str, Any] = {
        "id": plan.rows["id"].take(row),
        "group": plan.rows["group"].take(row),
        "shard": np.repeat([shard.key for shard in plan.shards], counts).astype(str),
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
