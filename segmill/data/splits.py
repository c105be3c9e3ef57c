"""Which split a group goes to: the official assignment, or a hash that no other group can move."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from segmill.errors import InputError, near_miss


def assign_splits(
    groups: Iterable[str], *, val: float, test: float, seed: int, official: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return group -> "train", "val" or "test".

    ``val`` and ``test`` are the shares of groups to expect. A group that ``official`` (split -> groups) does
    not name goes by a hash of (seed, group), so its split never changes when other groups come or go.
    InputError for shares that leave no train, and for official groups that are not among ``groups``.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise InputError(f"val is {val} and test {test}; each must be 0 or more and their sum below 1")
    names = set(groups)
    official_split = {group: split for split, members in official.items() for group in members}
    unknown = sorted(official_split.keys() - names)
    if unknown:
        hint = near_miss(unknown[0], sorted(names))
        raise InputError(
            f"dataset.yaml: splits.{official_split[unknown[0]]} names group '{unknown[0]}', "
            f"which no sample has{hint}; correct or remove it"
        )
    return {name: official_split.get(name) or _by_hash(name, val, test, seed) for name in sorted(names)}


def _by_hash(group: str, val: float, test: float, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test:
        return "test"
    return "val" if place < test + val else "train"
