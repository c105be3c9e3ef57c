"""Folds of the train split: groups assigned evenly, and a packed folder without one fold that copies no pixel."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from segmill.errors import InputError

INDEX_FILE = "index.parquet"


def assign_folds(groups: Iterable[str], folds: int) -> list[frozenset[str]]:
    """Assign the groups of samples to ``folds`` parts of about equal size, the same ones every time.

    Args:
        groups: the group of each sample.
        folds: 2 or more.

    Raises:
        InputError: fewer groups than folds.
    """
    samples = Counter(groups)
    if not 2 <= folds <= len(samples):
        raise InputError(
            f"--folds is {folds} and train has {len(samples)} groups; allowed is 2 to {len(samples)}, since the "
            "samples of a group stay together"
        )
    parts: list[set[str]] = [set() for _ in range(folds)]
    sizes = [0] * folds
    for group, size in sorted(samples.items(), key=lambda item: (-item[1], item[0])):
        smallest = sizes.index(min(sizes))
        parts[smallest].add(group)
        sizes[smallest] += size
    return [frozenset(part) for part in parts]


def train_groups(packed_dir: Path) -> list[str]:
    """Return the group of each train sample."""
    import pyarrow.parquet as pq

    groups: list[str] = pq.read_table(packed_dir / "train" / INDEX_FILE, columns=["group"])["group"].to_pylist()
    return groups


def write_fold(packed_dir: Path, fold_dir: Path, left_out: frozenset[str]) -> None:
    """Make ``fold_dir`` the packed splits with ``left_out`` taken out of train: links to the pixels, its own index.

    Val is the same for all folds, so that every fold's weights are selected by the same samples.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shutil.rmtree(fold_dir, ignore_errors=True)
    (fold_dir / "train").mkdir(parents=True)
    for path in (packed_dir / "train").iterdir():
        if path.name != INDEX_FILE:
            (fold_dir / "train" / path.name).symlink_to(path.resolve())
    table = pq.read_table(packed_dir / "train" / INDEX_FILE)
    stays = pc.invert(pc.is_in(table["group"], pa.array(sorted(left_out), pa.string())))
    pq.write_table(table.filter(stays), fold_dir / "train" / INDEX_FILE)
    (fold_dir / "val").symlink_to((packed_dir / "val").resolve())
    shutil.copyfile(packed_dir / "pack.json", fold_dir / "pack.json")
