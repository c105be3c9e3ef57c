"""Extra training samples, made once: rare objects pasted into other scenes, and scenes with rare classes again."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.origins import Origin, OriginsWriter
from segmill.data.loading.pasting import MIN_OBJECT_PX, Object, cut_out, find_place, objects_of, paste
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.data.storage.parallel import BIG, map_ordered

MOST_PASTED = 3  # objects in one sample
TARGETS, OBJECTS = 4, 6  # tries for one sample
OBJECTS_OF_SAMPLE = 32  # at most, the largest
SCALES = (0.8, 1.25)
CHUNK = 64  # samples looked at in one go
MADE_AT_ONCE = 8


def rare_classes(class_pixels: Sequence[int], below: float) -> list[int]:
    """Return the ids of classes that occur, on less than ``below`` of the labelled pixels."""
    total = sum(class_pixels)
    return [class_id for class_id, pixels in enumerate(class_pixels) if 0 < pixels < below * total]


def repeat_weights(
    pixels_NK: NDArray[np.int64], class_pixels: Sequence[int], rare: Sequence[int], below: float
) -> NDArray[np.float64]:
    """Return how often each sample is to be repeated beyond the once it is there already, up to a common factor.

    Repeat factor sampling (Gupta et al. 2019, "LVIS", section 4): r(c) = max(1, sqrt(t / f(c))) and a sample's factor
    is the largest of its classes. Here f(c) is a class's share of the labelled pixels, not of the images, and t is
    ``below``. ``pixels_NK``: pixels of each of the ``rare`` classes, per sample.
    """
    total = sum(class_pixels)
    factors = np.array([np.sqrt(below * total / class_pixels[class_id]) for class_id in rare])
    weights: NDArray[np.float64] = np.where(pixels_NK > 0, factors - 1, 0.0).max(axis=1, initial=0.0)
    return weights


def even_draw(weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return ``count`` indices, each as often as its weight says or once more or less (systematic sampling), sorted."""
    if not weights.any():
        return np.zeros(0, np.int64)
    edges = np.cumsum(weights) / weights.sum()
    points = (rng.random() + np.arange(count)) / max(count, 1)
    return np.minimum(np.searchsorted(edges, points, side="right"), len(weights) - 1)


def make_extras(
    packed_dir: Path,
    out_dir: Path,
    *,
    copy_paste: float,
    oversample: float,
    rare_below: float,
    seed: int,
    mirror: bool,
    jobs: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write extra train samples as a packed split with origins.parquet; return how many there are of each kind.

    The outcome depends on the train split and the arguments alone, not on ``jobs``. Memory stays bounded. Nothing is
    written where there is nothing to write: no share asked for, no rare class, or no place for any object. More than
    eight parameters: each but the folders, ``mirror``, ``jobs`` and ``on_progress`` is a key of params.yaml's augment.

    Args:
        packed_dir: packed splits, of which only train is opened.
        out_dir: the folder to write.
        copy_paste: samples with pasted objects, as a share of train. Those that found no place are missing.
        oversample: repeated samples, as a share of train.
        rare_below: a class is rare below this share of train's labelled pixels.
        seed: decides everything that is drawn.
        mirror: pasted objects may be mirrored.
        jobs: processes; 0 takes all CPUs for a big set.
        on_progress: called with samples done and samples in all.
    """
    info = read_pack(packed_dir)
    train = PackedSplit(packed_dir / "train")
    rare = rare_classes(info.class_pixels, rare_below)
    wanted = [round(share * len(train)) for share in (copy_paste, oversample)]
    made = {"copy_paste": 0, "balance": 0}
    if not rare or not sum(wanted):
        return made
    jobs = jobs or (len(os.sched_getaffinity(0)) if max(len(train), *wanted) > BIG else 1)
    with tempfile.TemporaryDirectory(prefix="segmill-extras-") as scratch:
        objects, pixels_NK = _survey(packed_dir / "train", scratch, rare, len(train), jobs)
        weights = repeat_weights(pixels_NK, info.class_pixels, rare, rare_below)
        repeats = even_draw(weights, wanted[1], np.random.default_rng([seed, 1]))
        np.save(Path(scratch) / "objects.npy", objects)
        np.save(Path(scratch) / "repeats.npy", repeats)
        make = functools.partial(_make, str(packed_dir / "train"), scratch, tuple(rare), info.ignore_id, seed, mirror)
        numbers = [("copy_paste", k) for k in range(wanted[0] if len(objects) else 0)]
        numbers += [("balance", k) for k in range(len(repeats))]
        with SplitWriter(out_dir) as writer, OriginsWriter(out_dir / "origins.parquet") as origins:
            for done, extra in enumerate(map_ordered(make, numbers, jobs=jobs, chunk=MADE_AT_ONCE), start=1):
                if extra is not None:
                    sample, origin = extra
                    writer.add(sample)
                    origins.add(origin)
                    made[origin.kind] += 1
                on_progress(done, len(numbers))
    _open.cache_clear()
    _bench.cache_clear()
    if not sum(made.values()):
        shutil.rmtree(out_dir)
    return made


def _survey(
    train_dir: Path, scratch: str, rare: Sequence[int], count: int, jobs: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return all objects of rare classes (rows of Object) and each sample's pixels of each rare class."""
    look = functools.partial(_survey_chunk, str(train_dir), scratch, tuple(rare))
    found = list(map_ordered(look, range(0, count, CHUNK), jobs=jobs))
    return np.concatenate([objects for objects, _ in found]), np.concatenate([pixels for _, pixels in found])


def _survey_chunk(
    train_dir: str, scratch: str, rare: tuple[int, ...], start: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    train = _open(train_dir, scratch)
    stop = min(start + CHUNK, len(train))
    pixels = np.zeros((stop - start, len(rare)), np.int64)
    objects: list[Object] = []
    for index in range(start, stop):
        mask = train.mask(index)
        pixels[index - start] = np.bincount(mask.ravel(), minlength=256)[list(rare)]
        present = [class_id for class_id, n in zip(rare, pixels[index - start], strict=True) if n >= MIN_OBJECT_PX]
        of_sample = [found for class_id in present for found in objects_of(mask, class_id, index)]
        objects += sorted(of_sample, key=lambda one: -one.area)[:OBJECTS_OF_SAMPLE]
    return np.array(objects, np.int32).reshape(-1, len(Object._fields)), pixels


@functools.lru_cache(maxsize=1)
def _open(train_dir: str, scratch: str) -> PackedSplit:
    """Open the split once per process and per ``scratch``: another run's split may be in the same place."""
    return PackedSplit(Path(train_dir))


class _Bench:
    """What a process needs to make extra samples, read once."""

    def __init__(self, train_dir: str, scratch: str) -> None:
        self.train = _open(train_dir, scratch)
        self.objects: NDArray[np.int32] = np.load(Path(scratch) / "objects.npy", mmap_mode="r")
        self.repeats: NDArray[np.int64] = np.load(Path(scratch) / "repeats.npy", mmap_mode="r")
        shapes = np.array([self.train.shape(index) for index in range(len(self.train))])
        _, self.shape_of = np.unique(shapes, axis=0, return_inverse=True)
        self.shape_of = self.shape_of.reshape(-1)
        self.of_shape = [np.flatnonzero(self.shape_of == shape) for shape in range(self.shape_of.max() + 1)]
        classes = self.objects[:, 1]
        self.of_class = [np.flatnonzero(classes == class_id) for class_id in np.unique(classes)]

    def draw(self, rng: np.random.Generator) -> Object:
        """Return an object: every rare class is as likely, and within it every object."""
        rows = self.of_class[rng.integers(len(self.of_class))]
        return Object(*self.objects[rows[rng.integers(len(rows))]].tolist())


_bench = functools.lru_cache(maxsize=1)(_Bench)


def _make(
    train_dir: str,
    scratch: str,
    rare: tuple[int, ...],
    ignore_id: int,
    seed: int,
    mirror: bool,
    number: tuple[str, int],
) -> tuple[Sample, Origin] | None:
    """Return extra sample ``number`` (kind, k), or None where no object found a place."""
    bench = _bench(train_dir, scratch)
    kind, k = number
    if kind == "balance":
        return _repeat(bench, rare, k)
    rng = np.random.default_rng([seed, 0, k])
    for _ in range(TARGETS):
        first = bench.draw(rng)
        alike = bench.of_shape[bench.shape_of[first.sample]]
        target = int(alike[rng.integers(len(alike))])
        others = [bench.draw(rng) for _ in range(OBJECTS - 1)]
        fitting = [
            one
            for one in (first, *others)
            if one.sample != target and bench.shape_of[one.sample] == bench.shape_of[target]
        ]
        pasted = _paste_some(
            bench.train, target, fitting, int(rng.integers(1, MOST_PASTED + 1)), rare, ignore_id, mirror, rng
        )
        if pasted is not None:
            image, mask, places = pasted
            train = bench.train
            made = Sample(f"{train.ids[target]}+paste-{k:06d}", train.groups[target], image, mask)
            sources = [train.ids[one.sample] for one, _ in places]
            classes, boxes = [one.class_id for one, _ in places], [box for _, box in places]
            return made, Origin(made.id, kind, train.ids[target], sources, classes, boxes)
    return None


def _repeat(bench: _Bench, rare: tuple[int, ...], k: int) -> tuple[Sample, Origin]:
    train, index = bench.train, int(bench.repeats[k])
    image, mask = train.image(index), train.mask(index)
    held = [class_id for class_id in rare if (mask == class_id).any()]
    made = Sample(f"{train.ids[index]}+balance-{k:06d}", train.groups[index], image, mask)
    return made, Origin(made.id, "balance", train.ids[index], [], held, [])


def _paste_some(
    train: PackedSplit,
    target: int,
    objects: Sequence[Object],
    most: int,
    rare: tuple[int, ...],
    ignore_id: int,
    mirror: bool,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[tuple[Object, list[int]]]] | None:
    """Paste the first ``most`` of ``objects`` that find a place into copies of the target's image and mask."""
    image, mask = train.image(target).copy(), train.mask(target).copy()
    untouchable = np.isin(mask, rare) | (mask == ignore_id)
    places: list[tuple[Object, list[int]]] = []
    for one in objects:
        patch = cut_out(
            train.image(one.sample),
            train.mask(one.sample),
            one,
            ignore_id=ignore_id,
            factor=float(np.exp(rng.uniform(*np.log(SCALES)))),
            mirrored=mirror and bool(rng.random() < 0.5),
        )
        place = find_place(patch, one.top + one.height, mask, untouchable, ignore_id, rng)
        if place is None:
            continue
        box = paste(patch, image, mask, place, ignore_id)
        untouchable |= mask == one.class_id
        places.append((one, box))
        if len(places) == most:
            break
    return (image, mask, places) if places else None
