"""Leaks: images that are in two splits, exactly or nearly, and groups that are torn between splits.

A near duplicate is found in two steps. A 64-bit hash of the image's coarse shape (its lowest DCT coefficients, after
Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", but made so that a mirrored image
has the same hash) proposes pairs, found by multi-index hashing (Norouzi, Punjani & Fleet 2012, CVPR). Then both images
of a pair are read, laid over one another (ECC: Evangelidis & Psarakis 2008, PAMI) and their fine structure is compared:
the correlation of what is left once the coarse shape is taken away. Coarse shape alone takes any two streets for one.

LIKENESS was measured. Altered copies of driving, brain and drawn street images (JPEG quality 60, half size,
brighter, gamma 1.3, cropped by 4 or 9 %, mirrored) have 0.87 and more. Brain slices 4 mm apart, which `brain` keeps in
blocks of different splits, have at most 0.78; the nearest images of different drives 0.2. Frames of a moving camera
(CamVid, 30 Hz) have 0.92 in the middle when they are 2 frames apart, 0.86 at 4, 0.75 at 8, below 0.5 a second apart
(1 in 20 pairs reaches 0.85: standing traffic). So at 0.85 CamVid's official split, `brain` and `street` are free of
leaks, and a random split of CamVid by frame has 21 to 26 of its 101 val images nearly in train.
RADIUS 14 reaches 98 to 100 % of copies cropped by 4 % in height and width, three in four cropped by 9 %, and hardly
any cropped by 15 %.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.issues import Issue, Severity
from segmill.data.schema.manifest import SPLITS
from segmill.data.splitting.splits import whole_group

RADIUS = 14  # bits of the hash in which two pictures of one scene may differ
LIKENESS = 0.85  # correlation of fine structure from which two images are one scene
PARTNERS = 3  # images that one image is compared with on pixels, the likeliest by hash first
COMPARED = 2000  # comparisons in all: each reads up to two images
FLAT = 3.0  # grey levels of standard deviation; an image below this has no structure to compare

_LOOK_PX = 32
_SEEN_PX = 64
_COARSE_PX = 1.7  # sigma of the blur that separates coarse shape from fine structure
_CHUNKS = 5
_BLOCK = 1 << 20  # pairs in memory at once
_HASH = np.dtype([("look", ">u8"), ("pixels", ">u8")])

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two samples of a leak, for a person to look at.

    ``files``: the images' names. ``likeness``: 1 is the same picture; None where pixels were not asked (a torn group).
    ``mirrored``: the second is the first one's mirror image.
    """

    kind: str
    severity: Severity
    ids: tuple[str, str]
    files: tuple[str, str]
    groups: tuple[str, str]
    splits: tuple[str, str]
    likeness: float | None
    mirrored: bool = False

    def __str__(self) -> str:
        likeness = "" if self.likeness is None else f", likeness {self.likeness:.2f}"
        sides = [f"{file} ({split})" for file, split in zip(self.files, self.splits, strict=True)]
        return f"{sides[1]} and {sides[0]}{likeness}{', mirrored' if self.mirrored else ''}"


class Leaks(NamedTuple):
    """An issue for each kind and severity found, and all pairs behind them."""

    issues: list[Issue]
    pairs: list[Pair]


_SAID: Mapping[tuple[str, Severity], tuple[str, str]] = {
    ("exact_duplicate", "error"): (
        "the same image is in two splits",
        "remove one of the two, or keep both in one group and so in one split",
    ),
    ("exact_duplicate", "warning"): ("the same image is in two samples of a split", "keep one: it counts double"),
    ("near_duplicate", "error"): (
        "nearly the same image is in another split",
        "put both into one group (frames of a recording belong together), or remove one",
    ),
    ("group_leak", "error"): (
        "a group has samples in several splits",
        "keep it in one: correct splits.csv, the official lists or the group rule",
    ),
    ("group_leak", "warning"): (
        "an official split cuts a group: its parts GROUP@SPLIT are in several splits",
        "give the parts one group and one split, or keep that to compare with published figures, knowing it flatters",
    ),
}


class _Rows(NamedTuple):
    ids: Sequence[str]
    files: Sequence[str]
    groups: Sequence[str]
    splits: Sequence[str]


def image_hash(image_HWC: Image) -> bytes:
    """Return 16 bytes: how the image looks (8, alike for like images) and its exact pixels (8). Takes some 0.2 ms.

    ``image_HWC``: uint8, C 1 or 3, any size.
    """
    import cv2

    grey = _shrunk(image_HWC, _LOOK_PX).astype(np.float32)
    waves = cv2.dct(grey)
    low = waves[:8, :8].copy()
    low[0, 0] = waves[8, 0]  # instead of the mean brightness, whose sign says nothing
    bits = low > 0
    # Odd horizontal frequencies change their sign in a mirrored image and are noise in a symmetric one, as a brain is:
    # what counts of them is whether they are strong.
    strength = np.abs(low) * (1 + np.add.outer(np.arange(8), np.arange(8)))
    bits[:, 1::2] = strength[:, 1::2] > np.median(strength)
    pixels = np.ascontiguousarray(image_HWC).data
    exact = zlib.crc32(repr(image_HWC.shape).encode()), zlib.crc32(pixels)
    return np.packbits(bits).tobytes() + b"".join(crc.to_bytes(4, "big") for crc in exact)


def find_leaks(
    *,
    ids: Sequence[str],
    files: Sequence[str],
    groups: Sequence[str],
    splits: Sequence[str],
    mask_sha256: Sequence[str],
    hashes: Sequence[bytes],
    read: Callable[[int], Image],
) -> Leaks:
    """Compare all samples of a set with one another.

    Args:
        ids, files, groups, splits, mask_sha256: a column each, of the same length; ``files`` are the images' names.
        hashes: ``image_hash`` of each image.
        read: gives the image of a row, HWC uint8; called for at most 2 x COMPARED rows.

    Returns:
        exact_duplicate: the same decoded pixels, whatever the file; an error across splits, a warning within one.
        near_duplicate: one scene in two splits, at most one pair for each val or test image; an error.
        group_leak: a group with samples in several splits; an error, and its samples are not compared with one
            another. A warning where an official split cuts it into parts named GROUP@SPLIT.
    """
    rows = _Rows(ids, files, groups, splits)
    keys = np.frombuffer(b"".join(hashes), _HASH)
    torn = list(_torn_groups(rows))
    copies = list(_copies(rows, keys))
    across = {side for pair in copies if pair.splits[0] != pair.splits[1] for side in pair.ids}
    near, uncompared = _near(rows, keys, mask_sha256, across, read)
    pairs = [*torn, *copies, *near]
    return Leaks([*_issues(pairs), *uncompared], pairs)


def _issues(pairs: Sequence[Pair]) -> Iterator[Issue]:
    """Yield one issue per kind and severity; its files are the images that came second."""
    for kind, severity in sorted({(pair.kind, pair.severity) for pair in pairs}):
        members = [pair for pair in pairs if (pair.kind, pair.severity) == (kind, severity)]
        what, fix = _SAID[kind, severity]
        files = tuple(sorted({pair.files[1] for pair in members}))
        yield Issue(kind, severity, files, f"{what}, for example {members[0]}", fix)


def _torn_groups(rows: _Rows) -> Iterator[Pair]:
    first: dict[str, dict[str, int]] = defaultdict(dict)
    for row, (group, split) in enumerate(zip(rows.groups, rows.splits, strict=True)):
        first[whole_group(group)].setdefault(split, row)
    for members in first.values():
        one, *others = sorted(members.values(), key=lambda row: SPLITS.index(rows.splits[row]))
        for other in others:
            pair = _pair(rows, "group_leak", one, other, None)
            yield pair if rows.groups[one] == rows.groups[other] else replace(pair, severity="warning")


def _copies(rows: _Rows, keys: NDArray[np.void]) -> Iterator[Pair]:
    """Yield images with the same decoded pixels, each with the first of its kind."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        same[key.tobytes()].append(row)
    for members in same.values():
        first, *others = sorted(members, key=lambda row: (SPLITS.index(rows.splits[row]), row))
        for other in others:
            yield _pair(rows, "exact_duplicate", first, other, 1.0)


def _near(
    rows: _Rows,
    keys: NDArray[np.void],
    mask_sha256: Sequence[str],
    across: set[str],
    read: Callable[[int], Image],
) -> tuple[list[Pair], list[Issue]]:
    """Compare what the hashes propose, likeliest first; return the near duplicates and a warning of what was left."""
    proposed = [*_same_masks(rows, mask_sha256), *_alike(rows, keys["look"].astype(np.uint64))]
    proposed.sort(key=lambda proposal: (proposal.distance, proposal.held, proposal.other))

    @functools.lru_cache(maxsize=4096)
    def seen(row: int) -> Image:
        return _seen(read(row))

    found: list[Pair] = []
    settled = {row for row, sample in enumerate(rows.ids) if sample in across}
    tried: dict[int, int] = defaultdict(int)
    compared, left = 0, set[int]()
    for held, other, _ in proposed:
        if held in settled or tried[held] >= PARTNERS or rows.groups[held] == rows.groups[other]:
            continue
        if compared == COMPARED:
            left.add(held)
            continue
        compared += 1
        tried[held] += 1
        one, two = seen(other), seen(held)
        straight, turned = _agreement(one, two), 0.0
        if straight < LIKENESS:
            turned = _agreement(one, two[:, ::-1])
        if max(straight, turned) >= LIKENESS:
            settled.add(held)
            found.append(_pair(rows, "near_duplicate", other, held, max(straight, turned), turned > straight))
    left -= settled
    if not left:
        return found, []
    files = tuple(sorted(rows.files[row] for row in left))
    what = f"these look like images of another split by their hash, but after {COMPARED} comparisons no more were made"
    return found, [
        Issue("near_duplicate", "warning", files, what, "correct the pairs that were found and validate again")
    ]


def _pair(rows: _Rows, kind: str, first: int, second: int, like: float | None, mirrored: bool = False) -> Pair:
    ids, files, groups, splits = ((column[first], column[second]) for column in rows)
    severity: Severity = "error" if splits[0] != splits[1] else "warning"
    return Pair(kind, severity, ids, files, groups, splits, like, mirrored)


class _Proposal(NamedTuple):
    """``held`` may show the same as ``other``. ``distance``: bits of the hash; -1 where the masks are the same."""

    held: int
    other: int
    distance: int


def _same_masks(rows: _Rows, mask_sha256: Sequence[str]) -> Iterator[_Proposal]:
    """Propose images of two splits with one mask: only masks that few share, for an empty mask proves nothing."""
    same: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(mask_sha256):
        same[digest].append(row)
    for members in same.values():
        if 2 <= len(members) <= 4:
            for a, b in itertools.combinations(members, 2):
                if rows.splits[a] != rows.splits[b]:
                    held, other = (a, b) if SPLITS.index(rows.splits[a]) > SPLITS.index(rows.splits[b]) else (b, a)
                    yield _Proposal(held, other, -1)


def _alike(rows: _Rows, looks: NDArray[np.uint64]) -> Iterator[_Proposal]:
    """Propose for each image the nearest ones by hash in the splits before its own."""
    split_N = np.array([SPLITS.index(split) for split in rows.splits])
    for later, earlier in ((1, 0), (2, 0), (2, 1)):
        held, other = np.flatnonzero(split_N == later), np.flatnonzero(split_N == earlier)
        queries, query_of = np.unique(looks[held], return_inverse=True)
        index, first = np.unique(looks[other], return_index=True)
        members = np.split(held[np.argsort(query_of, kind="stable")], np.cumsum(np.bincount(query_of))[:-1])
        for q, i, distance in zip(*_neighbours(queries, index), strict=True):
            for row in members[q]:
                yield _Proposal(int(row), int(other[first[i]]), int(distance))


def _neighbours(
    queries: NDArray[np.uint64], index: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (query, entry, distance) of the PARTNERS nearest entries of ``index`` within RADIUS of each query.

    Multi-index hashing: where two hashes differ in at most RADIUS bits, at least one of _CHUNKS chunks differs in at
    most RADIUS // _CHUNKS. Chunks are looked up with that many bits turned; what is found is compared in full.
    """
    width = -(-64 // _CHUNKS)
    best = np.empty((0, 3), np.int64)
    flips = _flips(width, RADIUS // _CHUNKS)
    for chunk in range(_CHUNKS):
        index_chunk, query_chunk = (_chunk(values, chunk) for values in (index, queries))
        order = np.argsort(index_chunk, kind="stable")
        starts = np.searchsorted(index_chunk[order], np.arange((1 << width) + 1))
        for flip in flips:
            keys = query_chunk ^ flip
            found = [best]
            for q, place in _expand(starts[keys], starts[keys + 1]):
                i = order[place]
                distance = np.bitwise_count(queries[q] ^ index[i]).astype(np.int64)
                near = distance <= RADIUS
                found.append(np.stack([q[near], i[near], distance[near]], axis=1))
                if sum(map(len, found)) > _BLOCK:
                    found = [_nearest(np.concatenate(found))]
            best = np.concatenate(found)
            if len(best) > _BLOCK:
                best = _nearest(best)
    best = _nearest(best)
    return best[:, 0], best[:, 1], best[:, 2]


def _chunk(values: NDArray[np.uint64], chunk: int) -> NDArray[np.int64]:
    """Return every _CHUNKS-th bit of each value, from bit ``chunk`` on, as one number: so each chunk has high and low
    frequencies, and none is nearly the same for all images."""
    bits = range(chunk, 64, _CHUNKS)
    parts = [(values >> np.uint64(bit) & np.uint64(1)) << np.uint64(place) for place, bit in enumerate(bits)]
    chunks: NDArray[np.int64] = np.bitwise_or.reduce(parts).astype(np.int64)
    return chunks


def _flips(width: int, most: int) -> list[int]:
    return [
        sum(1 << bit for bit in bits)
        for count in range(most + 1)
        for bits in itertools.combinations(range(width), count)
    ]


def _expand(
    starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (query, place) for every place in starts[query]..stops[query], at most some _BLOCK at a time."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    begin = 0
    while begin < len(starts):
        base = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, base + _BLOCK, side="right")))
        part = lengths[begin:end]
        q = np.repeat(np.arange(begin, end), part)
        within = np.arange(len(q)) - np.repeat(np.cumsum(part) - part, part)
        yield q, starts[q] + within
        begin = end


def _nearest(triples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep the PARTNERS nearest entries of each query, each once."""
    triples = triples[np.lexsort((triples[:, 1], triples[:, 2], triples[:, 0]))]
    if len(triples) > 1:
        again = (np.diff(triples[:, 0]) == 0) & (np.diff(triples[:, 1]) == 0)
        triples = triples[np.r_[True, ~again]]
    begins = np.flatnonzero(np.r_[True, np.diff(triples[:, 0]) != 0]) if len(triples) else np.empty(0, np.int64)
    rank = np.arange(len(triples)) - np.repeat(begins, np.diff(np.r_[begins, len(triples)]))
    return triples[rank < PARTNERS]


def _seen(image_HWC: Image) -> Image:
    """Return the image as it is compared: grey, _SEEN_PX square, uint8."""
    return _shrunk(image_HWC, _SEEN_PX)


def _shrunk(image_HWC: Image, side_px: int) -> Image:
    """Return the image grey and square, uint8. Of a large one only every n-th row and column is averaged."""
    import cv2

    step = max(1, min(image_HWC.shape[:2]) // (4 * side_px))
    few = np.ascontiguousarray(image_HWC[::step, ::step])
    grey = cv2.cvtColor(few, cv2.COLOR_RGB2GRAY) if few.shape[2] == 3 else few
    shrunk: Image = cv2.resize(grey, (side_px, side_px), interpolation=cv2.INTER_AREA)
    return shrunk


def _agreement(first: Image, second: Image) -> float:
    """Lay ``second`` over ``first`` and return the correlation of their fine structure, where both have pixels.

    Up to 1; 0 where one has no structure. Brightness, contrast, size and a small crop do not matter.
    """
    import cv2

    one, two = (image.astype(np.float32) for image in (first, second))
    if min(one.std(), two.std()) < FLAT:
        return 0.0
    warp = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    try:
        warp = cv2.findTransformECC(one, two, warp, cv2.MOTION_AFFINE, stop, None, 5)[1]
    except cv2.error:  # no overlap that could be improved: they are compared as they are
        warp = np.eye(2, 3, dtype=np.float32)
    if np.abs(warp - np.eye(2, 3)).max(axis=0) @ (1, 1, 1 / _SEEN_PX) > 0.5:
        return 0.0  # turned or scaled beyond what a small crop does
    size, how = (_SEEN_PX, _SEEN_PX), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fine_one = one - cv2.GaussianBlur(one, (0, 0), _COARSE_PX)
    fine_two = cv2.warpAffine(two - cv2.GaussianBlur(two, (0, 0), _COARSE_PX), warp, size, flags=how)
    both = cv2.warpAffine(np.ones_like(two), warp, size, flags=how) > 0.99
    a, b = fine_one[both], fine_two[both]
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread else 0.0
