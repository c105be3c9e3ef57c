"""The shards of packed splits: which samples share one, made once, and kept until no data version needs them.

Where a shard ends depends on its samples alone, never on what was packed before, so that two ways to one data version
give the same bytes, and a few new samples a few new shards. A shard holds, sample after sample, the image HWC uint8
and the mask HW uint8. Finished ones are kept in a store, each with its ``ShardFacts``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.packed import BYTES_PER_PX, CHANNELS, MOST_BYTES, MOST_SAMPLES
from segmill.data.packing.resizing import Piece, Resizing, pieces, pixels_of
from segmill.data.schema.manifest import row_part
from segmill.data.storage.images import read_image, read_mask
from segmill.enhancement import enhance
from segmill.errors import InputError
from segmill.files import replacing

if TYPE_CHECKING:
    import pyarrow

USUAL_BYTES, USUAL_SAMPLES = 2**25, 128  # what a shard holds on average, whichever comes first
READ_COLUMNS = [f"{kind}{what}" for kind in ("image", "mask") for what in ("", "_file", "_offset", "_bytes", "_sha256")]
_UNITS = ("sample", "height", "width", "top", "left", "padding_px")  # the columns of ShardFacts.pieces

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What is done to the samples of a split. Nothing for val and test, which are judged as they are."""

    resizing: Resizing = field(default_factory=Resizing)
    grayscale: bool = False
    clahe: float = 0.0
    ignore_id: int = 255


AS_THEY_ARE = Preparation()


class ShardRows(NamedTuple):
    """Rows ``start`` to ``stop`` (excluded) of a split's table, which make the shard ``key``."""

    start: int
    stop: int
    key: str


class ShardFacts(NamedTuple):
    """What a shard holds, in its order.

    ``samples``: a key per sample, S32. ``pieces``: int64 P x 6: number of the sample in the shard, height, width, top
    and left (px in the original), and px filled up. ``values``: C x 256, how often a channel takes a value, filled up
    pixels not counted. ``ids``: 256, how often a mask takes an id. ``sha256``: of the shard's bytes, 32 uint8.
    """

    samples: NDArray[np.bytes_]
    pieces: NDArray[np.int64]
    values: NDArray[np.int64]
    ids: NDArray[np.int64]
    sha256: NDArray[np.uint8]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each piece begins, and where the last one ends: bytes."""
        return np.append(0, np.cumsum(self.pieces[:, 1] * self.pieces[:, 2] * BYTES_PER_PX))


class ShardJob(NamedTuple):
    """A shard to make: its manifest rows, and for each the shard and number where it already is, if it does."""

    key: str
    rows: list[dict[str, Any]]
    sample_keys: list[str]
    known: list[tuple[str, int] | None]
    preparation: Preparation


class ShardStore:
    """Finished shards in a folder: KEY.bin with KEY.npz, which comes last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def shard(self, key: str) -> Path:
        return self.folder / f"{key}.bin"

    def facts(self, key: str) -> ShardFacts | None:
        """Return what the shard holds; None where it is not finished, cut short, or older than the hashes kept here."""
        try:
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as arrays:
                facts = ShardFacts(*(arrays[name] for name in ShardFacts._fields))
            whole = self.shard(key).stat().st_size == facts.offsets[-1]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return facts if whole else None

    def remove_damaged(self, keys: Iterable[str]) -> list[str]:
        """Read those shards of ``keys`` that are finished; remove, and return, whose bytes are not what was written.

        A shard may be shared with packed splits of earlier data versions by a hard link, so that a write there reaches
        the store. Shards are read by several threads, at some GB/s.
        """
        finished = [(key, facts) for key in sorted(set(keys)) if (facts := self.facts(key))]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            intact = list(threads.map(lambda shard: self._is_intact(*shard), finished))
        damaged = [key for (key, _), is_intact in zip(finished, intact, strict=True) if not is_intact]
        for key in damaged:
            self.shard(key).unlink()
            log.warning("%s does not hold the bytes that were written; it is made again", self.shard(key))
        return damaged

    def _is_intact(self, key: str, facts: ShardFacts) -> bool:
        with self.shard(key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == facts.sha256.tobytes()

    def find(self, sample_keys: set[str]) -> dict[str, tuple[str, int]]:
        """Return the shard and the number in it of those samples that any finished, intact shard holds."""
        found: dict[str, tuple[str, int]] = {}
        for path in sorted(self.folder.glob("*.npz")) if sample_keys else ():
            if facts := self.facts(path.stem):
                names = (name.decode() for name in facts.samples.tolist())
                found |= {name: (path.stem, number) for number, name in enumerate(names) if name in sample_keys}
        damaged = set(self.remove_damaged(key for key, _ in found.values()))
        return {name: place for name, place in found.items() if place[0] not in damaged}

    def keep(self, keys: Iterable[str]) -> None:
        """Delete every shard but these, and what a crash left."""
        kept = set(keys)
        for path in self.folder.iterdir():
            if path.stem not in kept:
                path.unlink()

    def link(self, key: str, folder: Path) -> None:
        """Give ``folder`` the shard: as a hard link, or a copy where the file system has none."""
        try:
            os.link(self.shard(key), folder / f"{key}.bin")
        except OSError:
            shutil.copyfile(self.shard(key), folder / f"{key}.bin")


def sample_keys(rows: pyarrow.Table, preparation: Preparation, code: str) -> list[str]:
    """Return a key per sample: 32 hex digits that change with its bytes, its preparation or the ``code``."""
    how = hashlib.sha256(json.dumps([asdict(preparation), code], sort_keys=True).encode())
    keys = []
    for image, mask in zip(rows["image_sha256"].to_pylist(), rows["mask_sha256"].to_pylist(), strict=True):
        digest = how.copy()
        digest.update(f"{image}{mask}".encode())
        keys.append(digest.hexdigest()[:32])
    return keys


def cut(rows: pyarrow.Table, keys: Sequence[str], resizing: Resizing) -> list[ShardRows]:
    """Cut a split's rows into shards.

    Args:
        rows: a split's samples with ``id``, ``pack`` (the shard of the raw set that holds it; "" for loose files),
            ``height`` and ``width``, in order of pack and id.
        keys: ``sample_keys`` of them.
        resizing: decides how many bytes a sample takes.

    A shard ends with the raw set's, after a sample whose id's hash says so, and where it would grow beyond MOST_BYTES
    or MOST_SAMPLES. So new samples change the shards that they fall into, and no others.

    Raises:
        InputError: cropping leaves nothing of an image.
    """
    pixels = functools.cache(functools.partial(pixels_of, how=resizing))
    columns = (rows[name].to_pylist() for name in ("id", "pack", "height", "width"))
    shards: list[ShardRows] = []
    start = size = 0
    before: str | None = None
    ended = False
    for row, (sample_id, pack, height, width) in enumerate(zip(*columns, strict=True)):
        mine = pixels(height, width) * BYTES_PER_PX
        full = row - start == MOST_SAMPLES or size + mine > MOST_BYTES
        if row > start and (full or ended or pack != before):
            shards.append(_shard_rows(start, row, keys))
            start, size = row, 0
        size += mine
        before = pack
        ended = _share(sample_id) < max(1 / USUAL_SAMPLES, mine / USUAL_BYTES)
    return [*shards, _shard_rows(start, len(keys), keys)] if keys else []


def make_shard(raw_dir: Path, folder: Path, job: ShardJob) -> None:
    """Write the shard and its facts into the store at ``folder``; one sample is in memory at a time.

    InputError where a file is not what validation saw.
    """
    store = ShardStore(folder)
    table: list[tuple[int, ...]] = []
    values, ids = np.zeros((CHANNELS, 256), np.int64), np.zeros(256, np.int64)
    digest = hashlib.sha256()
    with replacing(store.shard(job.key)) as draft, draft.open("wb") as file:
        for number, piece in _pieces(raw_dir, store, job):
            for pixels in (piece.image, piece.mask):
                content = np.ascontiguousarray(pixels).data
                file.write(content)
                digest.update(content)
            table.append((number, *piece.mask.shape, piece.top, piece.left, piece.padding_px))
            for channel in range(CHANNELS):
                values[channel] += np.bincount(piece.image[:, :, channel].ravel(), minlength=256)
            values[:, 0] -= piece.padding_px
            ids += np.bincount(piece.mask.ravel(), minlength=256)
        os.fchmod(file.fileno(), 0o444)  # whoever links to it must not change it
    sha256 = np.frombuffer(digest.digest(), np.uint8)
    table_Px6 = np.array(table, np.int64).reshape(-1, len(_UNITS))
    facts = ShardFacts(np.array(job.sample_keys, "S32"), table_Px6, values, ids, sha256)
    with replacing(folder / f"{job.key}.npz") as draft, draft.open("wb") as file:
        np.savez(file, **facts._asdict())


def _pieces(raw_dir: Path, store: ShardStore, job: ShardJob) -> Iterator[tuple[int, Piece]]:
    known = functools.lru_cache(maxsize=8)(lambda key: (store.facts(key), np.memmap(store.shard(key), mode="r")))
    for number, (row, place) in enumerate(zip(job.rows, job.known, strict=True)):
        if place is None:
            made = _decoded(raw_dir, row, job.preparation)
        else:
            facts, shard = known(place[0])
            assert facts is not None, "found in this store"
            made = _packed_before(facts, shard, place[1])
        for piece in made:
            yield number, piece


def _decoded(raw_dir: Path, row: dict[str, Any], how: Preparation) -> Iterator[Piece]:
    image = read_image(_read_unchanged(raw_dir, row, "image"))
    mask = read_mask(_read_unchanged(raw_dir, row, "mask"))
    if image.shape[2] == 1:
        image = np.repeat(image, CHANNELS, axis=2)
    # Before cropping and resizing: in a prediction, too, it happens to the whole image at its own size.
    image = enhance(image, grayscale=how.grayscale, clahe=how.clahe)
    return pieces(image, mask, how.resizing, ignore_id=how.ignore_id)


def _packed_before(facts: ShardFacts, shard: NDArray[np.uint8], sample: int) -> Iterator[Piece]:
    offsets = facts.offsets
    for place in np.flatnonzero(facts.pieces[:, 0] == sample):
        _, height, width, top, left, padding_px = facts.pieces[place].tolist()
        image, mask = np.split(shard[offsets[place] : offsets[place + 1]], [height * width * CHANNELS])
        yield Piece(image.reshape(height, width, CHANNELS), mask.reshape(height, width), top, left, padding_px)


def _read_unchanged(raw_dir: Path, row: dict[str, Any], kind: str) -> bytes:
    part = row_part(row, kind)
    try:
        content = part.read(raw_dir)
    except FileNotFoundError as error:
        raise InputError(f"{raw_dir / part.file} is gone since validation", "run `segmill validate` again") from error
    if hashlib.sha256(content).hexdigest() != row[f"{kind}_sha256"]:
        raise InputError(f"{raw_dir / part.name} changed since validation", "run `segmill validate` again")
    return content


def _shard_rows(start: int, stop: int, keys: Sequence[str]) -> ShardRows:
    return ShardRows(start, stop, hashlib.sha256("".join(keys[start:stop]).encode()).hexdigest()[:32])


def _share(sample_id: str) -> float:
    """Return a number of 0..1 that is the id's own."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "big") / 2**64
