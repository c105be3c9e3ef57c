"""Where samples that come in belong: their group, as the source or the set knows it, and the split of a new group."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.data.schema.issues import Issue, IssuesFound, wrong_file
from segmill.data.schema.manifest import (
    SAMPLES_FILE,
    SPLITS,
    DatasetInfo,
    read_dataset_info,
    read_samples,
    write_dataset_info,
)
from segmill.data.schema.mask_counts import group_pixels
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import freeze, read_frozen, settled_splits, whole_group, write_frozen

if TYPE_CHECKING:
    import pyarrow

_SHOWN = 10  # groups named in a sentence


def keep_together(
    raw_dir: Path, info: DatasetInfo, groups: Mapping[str, str], standing: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the group of each sample that came with one (``groups``: id -> group), and what to know of it.

    An official split that cuts a group names its parts GROUP@SPLIT. What comes of such a group later would be a new
    group, and could be assigned to another split than the frames beside it. So where the set at ``raw_dir`` has the
    group already, whole or in parts:

    - a sample of the set (``standing``: ids) keeps its group, where that is the one it came with or a part of it;
    - a new sample joins the part that is in train. Train has seen that group, and val and test stay as they were
      frozen, so nothing leaks that did not before. With no part in train it joins val's, then test's: a split that
      has not seen the group does not come to see it. What the source says of its split counts no more.

    Only where groups come from samples.csv: a rule on ids decides over groups that came.
    """
    if not (isinstance(info.group, dict) and "column" in info.group):
        return dict(groups), []
    split_of = settled_splits(raw_dir, info)
    homes: dict[str, str] = {}
    for group in sorted(split_of, key=lambda group: (SPLITS.index(split_of[group]), group)):
        homes.setdefault(whole_group(group), group)
    kept: dict[str, str] = {}
    joined: Counter[str] = Counter()
    for sample_id, group in groups.items():
        whole = whole_group(group)
        own = info.group_of(sample_id) if sample_id in standing else None
        if own is not None and whole_group(own) == whole:
            kept[sample_id] = own
            continue
        kept[sample_id] = homes.get(whole, group)
        joined[kept[sample_id]] += kept[sample_id] != group
    return kept, list(_said_of_joined(+joined, split_of))


def _said_of_joined(joined: Counter[str], split_of: Mapping[str, str]) -> Iterable[str]:
    for split in SPLITS:
        homes = sorted(group for group in joined if split_of[group] == split)
        if homes:
            count = sum(joined[group] for group in homes)
            listed = ", ".join(homes[:_SHOWN]) + (", ..." if len(homes) > _SHOWN else "")
            yield (
                f"{count} new {'sample' if count == 1 else 'samples'} joined {listed} in {split}, where the set has "
                "these groups: official splits cut them, and no other split may see more of them"
            )


def settle_groups(
    draft: Path,
    info: DatasetInfo,
    groups: Mapping[str, str],
    *,
    added: Iterable[str],
    standing: Iterable[str],
    gone: set[str],
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> DatasetInfo:
    """Write the groups that came into samples.csv, take out what is gone; return the set's info as it will be.

    ``columns``: id -> column -> cell, what else came of samples; the set's own group column is not among them.

    Where each sample was its own group, those of the set stay so. A group rule on ids decides over groups
    that came.
    """
    path = draft / SAMPLES_FILE
    present = {*standing, *added}
    rows = {row["id"]: row for _, row in read_samples(path)} if path.is_file() else {}
    header = list(next(iter(rows.values()), {"id": ""}))
    named = info.group.get("column") if isinstance(info.group, dict) else None
    changed = False
    if info.group is None and groups:
        named = next(name for name in ("group", "segmill_group") if name not in header)
        for sample_id in present:
            rows.setdefault(sample_id, {"id": sample_id})[named] = sample_id
        write_dataset_info(draft, dataclasses.replace(info, group={"column": named}))
    if named is not None:
        column = str(named)
        header += [column] if column not in header else []
        for sample_id, group in groups.items():
            row = rows.setdefault(sample_id, {"id": sample_id})
            changed |= row.get(column) != group
            row[column] = group
    for sample_id, cells in (columns or {}).items():
        row = rows.setdefault(sample_id, {"id": sample_id})
        for name, cell in cells.items():
            if name != named and row.get(name) != cell:
                header += [name] if name not in header else []
                row[name] = cell
                changed = True
    for sample_id in gone & rows.keys():
        del rows[sample_id]
        changed = True
    if changed:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, header, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows[sample_id] for sample_id in sorted(rows))
    settled = read_dataset_info(draft)
    official = {group for members in settled.splits.values() for group in members}
    if gone and official:
        left = {settled.group_of(sample_id) for sample_id in present if sample_id not in gone}
        if official - left:  # splits.csv keeps where they were
            splits = {split: tuple(g for g in members if g in left) for split, members in settled.splits.items()}
            settled = dataclasses.replace(settled, splits=splits)
            write_dataset_info(draft, settled)
    return settled


def without_group(info: DatasetInfo, came: Iterable[str]) -> list[Issue]:
    """Return an issue for each id that has no group by the set's rule."""
    fix = "rename it, or give its group as the rule wants it"
    return [wrong_file(name, info.why_no_group(name), fix) for name in came if info.group_of(name) is None]


def settle_splits(
    draft: Path,
    info: DatasetInfo,
    came: Iterable[str],
    splits: Mapping[str, str],
    rows: Callable[[], pyarrow.Table],
    *,
    shares: SplitShares,
    sealed: Collection[str] = (),
) -> None:
    """Freeze the groups that no split knows yet: as their source has it (``splits``: id -> split), else by classes.

    A new group of ``sealed`` goes to test whatever its source says.
    ``rows``: gives ``id``, ``ids`` and ``pixels`` of the set as it will be; asked only where a group is new.
    IssuesFound where a source puts one group into two splits.
    """
    frozen = read_frozen(draft)
    group_of = {sample_id: group for sample_id in came if (group := info.group_of(sample_id)) is not None}
    if not set(group_of.values()) - frozen.keys():
        return
    wished: dict[str, str] = {}
    issues = []
    for sample_id, split in splits.items():
        group = group_of.get(sample_id)
        if group is not None and group not in frozen and wished.setdefault(group, split) != split:
            what = f"its source puts it into {split}, and others of its group '{group}' into {wished[group]}"
            issues.append(wrong_file(sample_id, what, "keep a group in one split, or leave the source's splits out"))
    if issues:
        raise IssuesFound(draft, issues)
    wished |= {group: "test" for group in group_of.values() if group in sealed and group not in frozen}
    write_frozen(draft, frozen | wished)
    freeze(draft, info, group_pixels(info, rows()), shares=shares)
