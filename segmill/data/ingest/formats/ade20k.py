"""ADE20K as the scene parsing challenge lays it out (ADEChallengeData2016): images and annotations, 150 classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.formats.reading import (
    Row,
    SetFolder,
    Signs,
    SourceContents,
    bad_line,
    lookup,
    named,
    read_pair,
    signs,
    small_values,
    stem,
)
from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.schema.manifest import IGNORE_ID, DatasetInfo
from segmill.data.storage.images import read_raw_mask
from segmill.data.storage.raw_set import IMAGE_SUFFIXES
from segmill.errors import InputError

LOOKS_FOR = "images/training/ and annotations/training/ with PNG masks"
INFO = "objectInfo150.txt"
COUNT = 150
FOLDERS = (("training", "train"), ("validation", "val"))


def recognise(folder: SetFolder) -> Signs:
    return signs(
        ("images/training/ or images/validation/", any(folder.is_dir(f"images/{name}") for name, _ in FOLDERS)),
        (
            "annotations/training/ or annotations/validation/ with PNG masks",
            any(folder.has_file(f"annotations/{name}", (".png",)) for name, _ in FOLDERS),
        ),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List training and validation. Masks hold 0 for unlabelled, which becomes ignore, and 1..150, which lose one."""
    rows: list[Row] = []
    issues: list[Issue] = []
    for name, split in FOLDERS:
        images = {stem(file): f"images/{name}/{file}" for file in folder.files(f"images/{name}", IMAGE_SUFFIXES)}
        masks = {stem(file): f"annotations/{name}/{file}" for file in folder.files(f"annotations/{name}", (".png",))}
        for key in sorted(images.keys() - masks.keys()):
            what = f"it has no annotations/{name}/{key}.png"
            issues.append(wrong_file(images[key], what, "add the mask or remove the image"))
        for key in sorted(masks.keys() - images.keys()):
            issues.append(wrong_file(masks[key], "this mask has no image", "add the image or remove the mask"))
        rows += [Row(key, images[key], masks[key], split=split) for key in sorted(images.keys() & masks.keys())]
    names, notes = _names(folder, issues)
    table = lookup({value: value - 1 for value in range(1, COUNT + 1)})

    def mask_of(content: bytes) -> NDArray[np.uint8]:
        values = small_values(read_raw_mask(content).pixels)
        if values.size and values.max() > COUNT:
            raise InputError(f"it holds the value {values.max()}, and ADE20K's end at {COUNT}", "correct the mask")
        return table[values]

    return SourceContents(
        classes=named(names),
        rows=rows,
        load=lambda row: read_pair(folder, row, mask_of),
        ignore_id=IGNORE_ID,
        issues=issues,
        notes=notes,
    )


def _names(folder: SetFolder, issues: list[Issue]) -> tuple[list[str], list[str]]:
    """Return the 150 names from objectInfo150.txt, the first of each line's synonyms; numbers where it is not there."""
    numbered = [f"class_{number}" for number in range(1, COUNT + 1)]
    if not folder.is_file(INFO):
        return numbered, [f"{INFO} is not there, so the classes are numbered"]
    for number, line in folder.lines(INFO):
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0].lower() == "idx":
            continue
        if len(cells) < 2 or not cells[0].isdecimal() or not 1 <= int(cells[0]) <= COUNT or not cells[-1]:
            issues.append(bad_line(INFO, number, line, f"it is no class of 1..{COUNT}: index, ..., name, by tabs"))
            continue
        numbered[int(cells[0]) - 1] = cells[-1].split(",")[0].strip()
    return numbered, []
