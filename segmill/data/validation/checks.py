"""Checks a set, assigns its groups to splits and looks for leaks: reports all issues, or writes the manifest."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.issues import Issue, IssuesFound, check_accepted, issue_of, issues_as_metadata, stopping
from segmill.data.schema.manifest import SPLITS, DatasetInfo, row_part, write_manifest
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import assign_splits, read_frozen, refuse_calibration, refuse_sealed
from segmill.data.storage.images import read_image
from segmill.data.validation.columns import with_sample_columns
from segmill.data.validation.examination import examine
from segmill.data.validation.leaks import Pair, find_leaks
from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

# Called with what dataset.yaml says, the number of samples, all issues, and pairs that are alike across splits.
OnIssues = Callable[[DatasetInfo, int, Sequence[Issue], Sequence[Pair]], None]


@dataclass(frozen=True)
class Summary:
    """What a valid set holds. ``samples`` and ``groups`` per split; ``class_pixels`` per class name, whole set;
    ``issues``: warnings, and errors that were accepted."""

    samples: dict[str, int]
    groups: dict[str, int]
    class_pixels: dict[str, int]
    ignored_pixels: int
    issues: list[Issue]


def validate_dataset(
    raw_dir: Path,
    out_path: Path,
    *,
    shares: SplitShares,
    sealed: Collection[str] = (),
    calibration: Collection[str] = (),
    accept: Sequence[str] = (),
    jobs: int = 0,
    on_issues: OnIssues = lambda info, samples, issues, pairs: None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Summary:
    """Check every sample under ``raw_dir``, assign the groups to splits and write the manifest to ``out_path``.

    More than eight parameters: each is a setting of its own, or says where, how and to whom.

    Args:
        raw_dir: the labelled set.
        out_path: a Parquet file; ``issues.read_issues`` finds the warnings in it.
        shares: assign the groups that neither dataset.yaml nor splits.csv assigns.
        sealed: groups that must be in test.
        calibration: groups that are to be in no split when the set is packed.
        accept: kinds of issues that do not stop; samples that can't be used for such an error are left out.
        jobs: processes, 0: by the size of the set.
        on_issues: hears all issues and the pairs of leaks once, also when the set is refused.
        on_progress: hears how many samples are done, of how many.

    Raises:
        IssuesFound: an error that is not accepted. Nothing is written then.
        InputError: of dataset.yaml, a missing folder, an empty set or an empty split, a sealed group outside test, a
            calibration group that can't be one, an unknown kind in ``accept``.
    """
    check_accepted(accept)
    found = examine(raw_dir, jobs=jobs, on_progress=on_progress)
    info, issues = found.info, list(found.issues)
    pairs: list[Pair] = []
    samples = len(found.table)
    if samples:
        groups = found.table["group"].to_pylist()
        official = _without_broken(info.splits, groups, issues)
        split_of = assign_splits(groups, shares=shares, official=official, frozen=read_frozen(raw_dir))
        table = _with_splits(found.table, [split_of[group] for group in groups])
        leaks = find_leaks(
            ids=table["id"].to_pylist(),
            files=table["image"].to_pylist(),
            groups=groups,
            splits=table["split"].to_pylist(),
            mask_sha256=table["mask_sha256"].to_pylist(),
            hashes=found.hashes,
            read=functools.partial(_image_of_row, raw_dir, table),
        )
        pairs = leaks.pairs
        if not (found.together.shift or found.together.binary):  # then the ids are not the classes they seem
            issues += _uneven_classes(info, table)
        issues += leaks.issues
    issues.sort(key=lambda issue: (issue.severity, issue.kind, issue.files))
    on_issues(info, samples, issues, pairs)
    if stops := stopping(issues, accept):
        raise IssuesFound(raw_dir, stops, issues)
    if not samples:
        raise InputError(
            f"{raw_dir} holds no samples", "put images into images/ and masks of the same stem into masks/"
        )
    _refuse_empty_split(raw_dir, split_of)
    refuse_sealed(sealed, split_of)
    refuse_calibration(calibration, sealed, split_of)
    table = with_sample_columns(table, raw_dir)
    schema = table.schema
    write_manifest(out_path, table.replace_schema_metadata({**schema.metadata, **issues_as_metadata(issues)}))
    return _summarise(info, table, split_of, issues)


def _uneven_classes(info: DatasetInfo, table: pyarrow.Table) -> Iterator[Issue]:
    present = {split: pixels > 0 for split, pixels in _pixels_per_split(info, table).items()}
    for c, name in enumerate(info.class_names):
        splits = [split for split in SPLITS if present[split][c]]
        without = [split for split in SPLITS if split not in splits]
        if len(splits) == 1:
            detail = f"{splits[0]}, not {' or '.join(without)}"
            yield issue_of("class_in_one_split", f"class '{name}'", detail=detail)
        elif len(splits) == 2:
            yield issue_of("class_missing_in_split", f"class '{name}'", detail=without[0])


def _without_broken(
    official: Mapping[str, Sequence[str]], groups: Sequence[str], issues: Sequence[Issue]
) -> Mapping[str, Sequence[str]]:
    """Leave out the groups that no usable sample has, where samples are broken: that is said already."""
    if not any(issue.severity == "error" for issue in issues):
        return official
    usable = set(groups)
    return {split: [group for group in members if group in usable] for split, members in official.items()}


def _pixels_per_split(info: DatasetInfo, table: pyarrow.Table) -> dict[str, NDArray[np.int64]]:
    counts = table["class_pixels"].combine_chunks().flatten().to_numpy().reshape(-1, info.num_classes)
    splits = np.asarray(table["split"].to_pylist())
    return {split: counts[splits == split].sum(0, dtype=np.int64) for split in SPLITS}


def _with_splits(table: pyarrow.Table, splits: list[str]) -> pyarrow.Table:
    import pyarrow as pa

    place = table.schema.get_field_index("group") + 1
    splits = [sys.intern(split) for split in splits]
    return table.add_column(place, pa.field("split", pa.string()), pa.array(splits, pa.string()))


def _image_of_row(raw_dir: Path, table: pyarrow.Table, row: int) -> NDArray[np.uint8]:
    (facts,) = table.slice(row, 1).select(["image", "image_file", "image_offset", "image_bytes"]).to_pylist()
    return read_image(row_part(facts, "image").read(raw_dir))


def _refuse_empty_split(raw_dir: Path, split_of: Mapping[str, str]) -> None:
    groups = Counter(split_of.values())
    empty = [split for split in SPLITS if not groups[split]]
    if empty:
        raise InputError(
            f"{raw_dir}: no group falls into {' and '.join(empty)} (groups in all: {len(split_of)}); "
            + (
                "name some under splits in dataset.yaml, raise split.val or split.test, or change split.seed"
                if len(split_of) >= len(SPLITS)
                else "each split takes whole groups, so add samples of other groups with `segmill data add`, or "
                "correct the group rule in dataset.yaml"
            )
        )


def _summarise(info: DatasetInfo, table: pyarrow.Table, split_of: Mapping[str, str], issues: list[Issue]) -> Summary:
    samples, groups = Counter(table["split"].to_pylist()), Counter(split_of.values())
    totals = sum(_pixels_per_split(info, table).values(), np.zeros(info.num_classes, np.int64))
    return Summary(
        samples={split: samples[split] for split in SPLITS},
        groups={split: groups[split] for split in SPLITS},
        class_pixels={name: int(n) for name, n in zip(info.class_names, totals, strict=True)},
        ignored_pixels=int(table["ignored_pixels"].to_numpy().sum()),
        issues=issues,
    )
