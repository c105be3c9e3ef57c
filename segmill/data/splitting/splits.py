"""Which split a group goes to: the official assignment, the frozen one, or a hash; new groups go by their classes.

A group is assigned once and stays: dataset.yaml's ``splits`` come first, then ``splits.csv`` (``group,split``), which
is written whenever data come in, then a hash of the group's name for sets that have no such file.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import SPLITS, DatasetInfo
from segmill.data.splitting.shares import SplitShares
from segmill.errors import InputError, near_miss
from segmill.files import replacing

FROZEN_FILE = "splits.csv"
# Who gets a class that fewer groups show than there are splits: without it in train it can't be learnt, without it in
# test nobody knows whether it was; val only chooses.
FIRST = ("train", "test", "val")
# Up to so many ways to assign are all tried; up to so many groups in pairs, for a swap that spreads classes better.
TRIED_UP_TO = 20_000
SWAPPED_UP_TO = 300


def assign_splits(
    groups: Iterable[str],
    *,
    shares: SplitShares,
    official: Mapping[str, Sequence[str]],
    frozen: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return group -> "train", "val" or "test", for ``groups`` only.

    A group that neither ``official`` (split -> groups) nor ``frozen`` (group -> split) names goes by a hash of
    (seed, group), so its split never changes when other groups come or go. InputError for official groups that are not
    among ``groups``.
    """
    names = set(groups)
    official_split = _by_group(official)
    unknown = sorted(official_split.keys() - names)
    if unknown:
        hint = near_miss(unknown[0], sorted(names))
        raise InputError(
            f"dataset.yaml: splits.{official_split[unknown[0]]} names group '{unknown[0]}', "
            f"which no sample has{hint}; correct or remove it"
        )
    settled = {**(frozen or {}), **official_split}
    return {name: settled.get(name) or _by_hash(name, shares) for name in sorted(names)}


def read_frozen(raw_dir: Path) -> dict[str, str]:
    """Return group -> split of ``raw_dir/splits.csv``; empty where there is none. InputError names the line."""
    path = raw_dir / FROZEN_FILE
    if not path.is_file():
        return {}
    frozen: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if header != ["group", "split"]:
                raise InputError(f"{path}: line 1 is '{','.join(header)}'", "it must be 'group,split'")
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != 2 or cells[1] not in SPLITS:
                    hint = near_miss(cells[-1], SPLITS)
                    raise InputError(
                        f"{path}: line {rows.line_num} is '{','.join(cells)}'; write a group and one of "
                        f"{', '.join(SPLITS)}{hint}"
                    )
                group, split = cells
                if frozen.setdefault(group, split) != split:
                    raise InputError(
                        f"{path}: line {rows.line_num} puts group '{group}' into {split}, an earlier line into "
                        f"{frozen[group]}; keep one of the two"
                    )
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a UTF-8 table of comma-separated values ({error})", "correct it") from error
    return frozen


def settled_splits(raw_dir: Path, info: DatasetInfo) -> dict[str, str]:
    """Return group -> split of all groups that are assigned: splits.csv's, and dataset.yaml's above them."""
    return read_frozen(raw_dir) | _by_group(info.splits)


def refuse_sealed(sealed: Iterable[str], split_of: Mapping[str, str]) -> None:
    """Raise InputError unless every sealed group is in test, and test has another group besides.

    Sealing never moves a group: a model that trained or was chosen on it would be judged on it. ``split_of`` holds the
    split of every group that has samples.
    """
    sealed = sorted(set(sealed))
    test = sorted(group for group, split in split_of.items() if split == "test")
    for group in sealed:
        if group not in split_of:
            raise InputError(
                f"split.sealed names group '{group}', which no sample has{near_miss(group, sorted(split_of))}; correct "
                "it, or add its samples with `segmill data add`"
            )
        if split_of[group] != "test":
            raise InputError(
                f"split.sealed names group '{group}', which is in {split_of[group]} already; seal groups of test "
                f"({_first(test)}), or groups that `segmill data add` adds after split.sealed names them"
            )
    if sealed and len(sealed) == len(test):
        raise InputError(
            "split.sealed names every group of test, so that the report would have nothing to show; leave at least "
            "one out, or add groups with `segmill data add`"
        )


def refuse_calibration(calibration: Iterable[str], sealed: Collection[str], split_of: Mapping[str, str]) -> None:
    """Raise InputError unless every calibration group has samples, is not sealed, and leaves others in its split."""
    calibration = sorted(set(calibration))
    for group in calibration:
        if group not in split_of:
            raise InputError(
                f"split.calibration names group '{group}', which no sample has{near_miss(group, sorted(split_of))}; "
                "correct it, or add its samples with `segmill data add`"
            )
        if group in sealed:
            raise InputError(
                f"split.calibration names group '{group}', which split.sealed names too; a group has one use alone"
            )
    for split in sorted({split_of[group] for group in calibration}):
        if all(group in calibration for group, its in split_of.items() if its == split and group not in sealed):
            raise InputError(f"split.calibration names every group of {split}; leave at least one that is not sealed")


def part_of_group(group: str, split: str) -> str:
    """Return what the part of a group is called that an official split, which cuts the group, puts into ``split``."""
    return f"{group}@{split}"


def whole_group(group: str) -> str:
    """Return the name of the group that ``group`` is a part of; its own where it is no part."""
    whole, _, split = group.rpartition("@")
    return whole if whole and split in SPLITS else group


def write_frozen(raw_dir: Path, frozen: Mapping[str, str]) -> None:
    """Write ``raw_dir/splits.csv`` (group -> split) atomically, sorted by group: the same content, the same bytes."""
    with replacing(raw_dir / FROZEN_FILE) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("group", "split"))
        rows.writerows(sorted(frozen.items()))


def freeze(
    raw_dir: Path,
    info: DatasetInfo,
    class_pixels: Mapping[str, NDArray[np.int64]],
    *,
    shares: SplitShares,
) -> dict[str, str]:
    """Settle every group of ``class_pixels`` (group -> K pixel counts), write splits.csv and return what it holds.

    What is assigned stays: splits.csv, with dataset.yaml's ``splits`` above it. A set without that file was assigned by
    hash so far, and keeps that: so call this before a change for the groups from before it, and again after it.
    A set being made writes an empty splits.csv first (``write_frozen(raw_dir, {})``): then all is assigned by classes.
    Groups that are gone keep their row: whoever comes back comes back to the same split.
    """
    official = _by_group(info.splits)
    if (raw_dir / FROZEN_FILE).is_file():
        settled = read_frozen(raw_dir)
    else:
        settled = {group: _by_hash(group, shares) for group in class_pixels}
    settled |= {group: split for group, split in official.items() if group in settled or group in class_pixels}
    settled |= assign_new(settled, class_pixels, shares=shares)
    write_frozen(raw_dir, settled)
    return settled


def assign_new(
    settled: Mapping[str, str],
    class_pixels: Mapping[str, NDArray[np.int64]],
    *,
    shares: SplitShares,
) -> dict[str, str]:
    """Return the split of each group of ``class_pixels`` that ``settled`` does not name.

    ``class_pixels`` (group -> K pixel counts) holds all groups, also the assigned ones: what those have already is
    counted. First the shares: val and test get their part of all groups, rounded, at least one each where there are
    three groups. Then the classes: every class into every split where enough groups show it, and its groups in the
    splits' proportion. Few groups are assigned in the best of all ways, of equal ones in that whose splits have the
    shares in pixels too; more by iterative stratification (Sechidis et al. 2011, ECML PKDD; rarest class first) with
    room held exactly, and swaps after it. ``seed`` decides between equals, and the order of the mapping never matters.
    """
    new = sorted(class_pixels.keys() - settled.keys(), key=lambda group: _digest(shares.seed, group))
    if not new:
        return {}
    shares_S = np.array([1 - shares.val - shares.test, shares.val, shares.test])
    old = [group for group in class_pixels if group in settled]
    shows = {group: np.asarray(pixels) > 0 for group, pixels in class_pixels.items()}
    present_NK = np.stack([shows[group] for group in new])
    have_SK = np.zeros((len(SPLITS), present_NK.shape[1]), np.int64)
    have_S = np.zeros(len(SPLITS), np.int64)
    for group in old:
        have_SK[SPLITS.index(settled[group])] += shows[group]
        have_S[SPLITS.index(settled[group])] += 1
    room_S = _room(_wanted(len(old) + len(new), shares_S), have_S, len(new))
    wanted_SK = np.stack([_wanted(int(count), shares_S) for count in have_SK.sum(0) + present_NK.sum(0)], axis=1)
    if _ways(room_S) <= TRIED_UP_TO:
        total = sum(int(np.sum(pixels)) for pixels in class_pixels.values())
        lacks_S = shares_S * total
        for group in old:
            lacks_S[SPLITS.index(settled[group])] -= np.sum(class_pixels[group])
        size_N = np.array([np.sum(class_pixels[group]) for group in new])
        split_N = _best(present_NK, have_SK, wanted_SK, room_S, size_N, lacks_S)
    else:
        split_N = _deal(present_NK, have_SK, wanted_SK, room_S)
        if len(new) <= SWAPPED_UP_TO:
            _swap(split_N, present_NK, have_SK, wanted_SK)
    return {group: SPLITS[split] for group, split in zip(new, split_N, strict=True)}


def _by_group(official: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {group: split for split, members in official.items() for group in members}


def _first(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _digest(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()


def _by_hash(group: str, shares: SplitShares) -> str:
    place = int.from_bytes(_digest(shares.seed, group)[:8], "big") / 2**64
    if place < shares.test:
        return "test"
    return "val" if place < shares.test + shares.val else "train"


def _wanted(count: int, shares_S: NDArray[np.float64]) -> NDArray[np.int64]:
    """Assign ``count`` things to the splits by shares, in whole numbers: largest remainders, but none left without one
    where there are enough; in the order of FIRST where there are not."""
    wanted_S: NDArray[np.int64] = np.floor(shares_S * count + 1e-9).astype(np.int64)
    order = [SPLITS.index(split) for split in FIRST]
    by_remainder = sorted(order, key=lambda s: (round(float(wanted_S[s] - shares_S[s] * count), 9), order.index(s)))
    for s in by_remainder[: count - int(wanted_S.sum())]:
        wanted_S[s] += 1
    for s in order:
        if shares_S[s] > 0 and wanted_S[s] == 0:
            richest = max(order, key=lambda r: (int(wanted_S[r]), -order.index(r)))
            if wanted_S[richest] > 1 or order.index(s) < order.index(richest):
                wanted_S[richest] -= 1
                wanted_S[s] += 1
    return wanted_S


def _room(wanted_S: NDArray[np.int64], have_S: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return how many of ``count`` new groups each split takes: those furthest below what they want first."""
    room_S: NDArray[np.int64] = np.maximum(wanted_S - have_S, 0)
    while room_S.sum() > count:  # another split has more than it wants, and keeps it
        held = [s for s in (SPLITS.index(split) for split in FIRST) if room_S[s]]
        room_S[max(held, key=lambda s: (room_S[s] > 1 or have_S[s] > 0, room_S[s]))] -= 1
    return room_S


def _ways(room_S: NDArray[np.int64]) -> int:
    count, held_out = int(room_S.sum()), int(room_S[1:].sum())
    return math.comb(count, held_out) * math.comb(held_out, int(room_S[1]))


def _best(
    present_NK: NDArray[np.bool_],
    have_SK: NDArray[np.int64],
    wanted_SK: NDArray[np.int64],
    room_S: NDArray[np.int64],
    size_N: NDArray[np.int64],
    lacks_S: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Try every way to assign and return the cheapest; of equals that which comes nearest to the pixels that the splits
    lack (``size_N``: those of each group); then the first, by the order the groups come in."""
    count, (_, val, test) = len(present_NK), room_S.tolist()
    deals_DN = np.zeros((_ways(room_S), count), np.int64)
    held_out = itertools.combinations(range(count), val + test)
    ways = ((held, chosen) for held in held_out for chosen in itertools.combinations(held, val))
    for deal_N, (held, chosen) in zip(deals_DN, ways, strict=True):
        deal_N[list(held)] = SPLITS.index("test")
        deal_N[list(chosen)] = SPLITS.index("val")
    cost_D, uneven_D = np.zeros(len(deals_DN)), np.zeros(len(deals_DN))
    for s in range(len(SPLITS)):
        mine_DN = (deals_DN == s).astype(np.int64)
        cost_D += _cost(have_SK[s] + mine_DN @ present_NK, wanted_SK[s]).sum(1)
        uneven_D += np.abs(mine_DN @ size_N - lacks_S[s])
    best_N: NDArray[np.int64] = deals_DN[int(np.lexsort((np.round(uneven_D), np.round(cost_D, 6)))[0])]
    return best_N


def _deal(
    present_NK: NDArray[np.bool_], have_SK: NDArray[np.int64], wanted_SK: NDArray[np.int64], room_S: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Iterative stratification: the class with fewest groups left is assigned first, each of its groups to the split
    that lacks the largest part of what it wants of that class; between equals, of the group's other classes.

    ``have_SK``: groups of each class that a split has; ``room_S``: groups it takes.
    """
    split_N = np.full(len(present_NK), -1)
    have_SK, room_S = have_SK.copy(), room_S.copy()
    left_K = present_NK.sum(0)
    first = [SPLITS.index(split) for split in FIRST]
    while left_K.any():
        k = int(np.argmin(np.where(left_K > 0, left_K, left_K.max() + 1)))
        of_class = np.flatnonzero(present_NK[:, k] & (split_N < 0))
        for n in of_class[np.argsort(-present_NK[of_class].sum(1), kind="stable")]:
            lacks_SK = (wanted_SK - have_SK) / np.maximum(wanted_SK, 0.5)
            also_S = lacks_SK[:, present_NK[n]].sum(1)
            s = max((s for s in first if room_S[s]), key=lambda s: (lacks_SK[s, k], also_S[s], room_S[s]))
            split_N[n] = s
            room_S[s] -= 1
            have_SK[s] += present_NK[n]
            left_K -= present_NK[n]
    split_N[split_N < 0] = np.repeat(np.arange(len(room_S)), room_S)
    return split_N


def _swap(
    split_N: NDArray[np.int64], present_NK: NDArray[np.bool_], have_SK: NDArray[np.int64], wanted_SK: NDArray[np.int64]
) -> None:
    """Swap pairs of groups in place while that lowers the cost: first classes that a split lacks, then distance from
    what is wanted."""
    one_N, two_N = np.triu_indices(len(split_N), 1)
    while True:
        count_SK = have_SK.copy()
        np.add.at(count_SK, split_N, present_NK)
        apart = np.flatnonzero(split_N[one_N] != split_N[two_N])
        one, two = one_N[apart], two_N[apart]
        moved_PK = present_NK[two].astype(np.int64) - present_NK[one]
        before = _cost(count_SK, wanted_SK).sum(1)
        gain_P = np.zeros(len(apart))
        for s in range(len(SPLITS)):
            for end, sign in ((one, 1), (two, -1)):
                touched = split_N[end] == s
                after = _cost(count_SK[s] + sign * moved_PK[touched], wanted_SK[s])
                gain_P[touched] += before[s] - after.sum(1)
        best = int(np.argmax(gain_P)) if len(gain_P) else 0
        if not len(gain_P) or gain_P[best] <= 1e-9:
            return
        split_N[one[best]], split_N[two[best]] = split_N[two[best]], split_N[one[best]]


def _cost(count_K: NDArray[np.int64], wanted_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cost per class: a million where it is not there, and the squared distance in units of what is wanted."""
    return 1e6 * (count_K <= 0) + (count_K - wanted_K) ** 2 / np.maximum(wanted_K, 0.5)
