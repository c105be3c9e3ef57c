"""Looks at every file of a set once: says all that is wrong at once, makes the manifest of what is right."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.manifest import SPLITS, DatasetInfo, manifest_schema, read_dataset_info, write_manifest
from segmill.data.parallel import map_ordered
from segmill.data.readers import Finding, Pair, list_pairs, read_image, read_mask
from segmill.data.splits import assign_splits
from segmill.errors import InputError

PRINTED = 50


class BadData(InputError):
    """Files that can't be used. The message prints the first PRINTED lines; ``findings`` holds them all."""

    def __init__(self, raw_dir: Path, findings: list[Finding]) -> None:
        self.findings = findings
        lines = [f"  {finding}" for finding in findings[:PRINTED]]
        if len(findings) > PRINTED:
            lines.append(f"  and {len(findings) - PRINTED} more")
        count = "1 problem" if len(findings) == 1 else f"{len(findings)} problems"
        super().__init__("\n".join([f"{count} in {raw_dir}:", *lines]))


@dataclass(frozen=True)
class Summary:
    """What a valid set holds. ``samples`` and ``groups`` per split; ``class_pixels`` per class name, whole
    set."""

    samples: dict[str, int]
    groups: dict[str, int]
    class_pixels: dict[str, int]
    ignored_pixels: int
    warnings: list[str]


def validate_dataset(raw_dir: Path, out_path: Path, *, val: float, test: float, seed: int, jobs: int = 0) -> Summary:
    """Check every sample under ``raw_dir``, deal the groups to splits and write the manifest to ``out_path``.

    ``val``, ``test``, ``seed`` deal the groups that dataset.yaml does not assign. ``jobs`` processes, 0: by
    the size of the set. BadData lists all bad files at once; other InputErrors come from dataset.yaml, a
    missing folder, an empty set or an empty split. Nothing is written then.
    """
    info = read_dataset_info(raw_dir)
    pairs, findings = list_pairs(raw_dir)
    rows: list[dict[str, Any]] = []
    for outcome in map_ordered(functools.partial(check_sample, raw_dir, info), pairs, jobs=jobs):
        if isinstance(outcome, dict):
            rows.append(outcome)
        else:
            findings += outcome
    if findings:
        raise BadData(raw_dir, sorted(findings, key=lambda finding: finding.file))
    if not rows:
        raise InputError(f"{raw_dir} holds no samples; put images into images/ and masks of the same stem into masks/")
    split_of = assign_splits({row["group"] for row in rows}, val=val, test=test, seed=seed, official=info.splits)
    for row in rows:
        row["split"] = split_of[row["group"]]
    _refuse_empty_split(raw_dir, split_of)
    _note_copies(rows)
    summary = _summarise(info, rows, split_of)
    import pyarrow as pa

    write_manifest(out_path, pa.Table.from_pylist(rows, schema=manifest_schema(info)))
    return summary


def check_sample(raw_dir: Path, info: DatasetInfo, pair: Pair) -> dict[str, Any] | list[Finding]:
    """Return the sample's manifest row (split still open), or what is wrong with it."""
    findings: list[Finding] = []
    files: dict[str, tuple[str, str, NDArray[np.uint8]]] = {}
    for kind, path, read in (("image", pair.image, read_image), ("mask", pair.mask, read_mask)):
        name = path.relative_to(raw_dir).as_posix()
        try:
            content = path.read_bytes()
            files[kind] = name, hashlib.sha256(content).hexdigest(), read(content)
        except InputError as error:
            what, _, fix = str(error).rpartition("; ")
            findings.append(Finding(name, what, fix))
        except OSError as error:
            findings.append(Finding(name, f"it can't be opened ({error.strerror})", "check the file and its rights"))
    group = info.group_of(pair.id)
    if group is None:
        what = f"the group rule '{info.group}' of dataset.yaml does not match its id '{pair.id}'"
        findings.append(Finding(f"images/{pair.image.name}", what, "rename it or mend the rule"))
    if findings:
        return findings
    (image_name, image_sha256, image), (mask_name, mask_sha256, mask) = files["image"], files["mask"]
    height, width, channels = image.shape
    if mask.shape != (height, width):
        what = f"the mask is {mask.shape[0]} x {mask.shape[1]} px (height x width), the image {height} x {width}"
        return [Finding(mask_name, what, "make them the same size")]
    pixels = np.bincount(mask.ravel(), minlength=256)
    known = [*range(info.num_classes), info.ignore_id]
    strange = [int(i) for i in np.flatnonzero(pixels) if i not in known]
    if strange:
        what = f"it holds class ids {strange} outside 0..{info.num_classes - 1} and ignore id {info.ignore_id}"
        return [Finding(mask_name, what, "correct the mask or add the classes to dataset.yaml")]
    return {
        "id": pair.id,
        "image": image_name,
        "mask": mask_name,
        "image_sha256": image_sha256,
        "mask_sha256": mask_sha256,
        "height": height,
        "width": width,
        "channels": channels,
        "group": group,
        "class_pixels": pixels[: info.num_classes].tolist(),
        "ignored_pixels": int(pixels[info.ignore_id]),
        "findings": ["every pixel of the mask is ignored"] if pixels[info.ignore_id] == mask.size else [],
    }


def _refuse_empty_split(raw_dir: Path, split_of: dict[str, str]) -> None:
    groups = Counter(split_of.values())
    empty = [split for split in SPLITS if not groups[split]]
    if empty:
        raise InputError(
            f"{raw_dir}: no group falls into {' and '.join(empty)} ({len(split_of)} groups in all); "
            "name some under splits in dataset.yaml, raise split.val or split.test, or change split.seed"
        )


def _note_copies(rows: list[dict[str, Any]]) -> None:
    """Write into ``findings`` which images are byte for byte the same."""
    same: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        same[row["image_sha256"]].append(row)
    for copies in same.values():
        splits = sorted({row["split"] for row in copies})
        for row in copies[1:]:
            where = f", across {' and '.join(splits)}" if len(splits) > 1 else ""
            row["findings"].append(f"the image is a copy of {copies[0]['id']}{where}")


def _summarise(info: DatasetInfo, rows: list[dict[str, Any]], split_of: dict[str, str]) -> Summary:
    samples, groups = Counter(row["split"] for row in rows), Counter(split_of.values())
    pixels = {split: np.zeros(info.num_classes, np.int64) for split in SPLITS}
    for row in rows:
        pixels[row["split"]] += np.array(row["class_pixels"])
    warnings = [
        f"class '{name}' has no pixel in {split}"
        for split in SPLITS
        for name, count in zip(info.class_names, pixels[split], strict=True)
        if count == 0
    ]
    noted = [f"{row['id']}: {finding}" for row in rows for finding in row["findings"]]
    warnings += noted[:PRINTED] + ([f"and {len(noted) - PRINTED} more"] if len(noted) > PRINTED else [])
    totals = sum(pixels.values(), np.zeros(info.num_classes, np.int64))
    return Summary(
        samples={split: samples[split] for split in SPLITS},
        groups={split: groups[split] for split in SPLITS},
        class_pixels={name: int(n) for name, n in zip(info.class_names, totals, strict=True)},
        ignored_pixels=sum(row["ignored_pixels"] for row in rows),
        warnings=warnings,
    )
