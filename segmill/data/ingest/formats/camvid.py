"""CamVid as SegNet's tutorial lays it out: train.txt, val.txt, test.txt, and folders train, trainannot, ..."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from segmill.data.ingest.formats.reading import (
    Loaded,
    Row,
    SetFolder,
    Signs,
    SourceContents,
    as_it_is,
    bad_line,
    named,
    read_pair,
    signs,
    without_repeats,
)
from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import SPLITS, DatasetInfo
from segmill.data.storage.raw_set import IMAGE_SUFFIXES

LOOKS_FOR = "train.txt, val.txt or test.txt with two paths a line, and a folder trainannot, valannot or testannot"
VOID = 11
# Names and order of SegNet's tutorial, colours of the Cambridge set.
CLASSES = (
    ("sky", "#808080"), ("building", "#800000"), ("pole", "#c0c080"), ("road", "#804080"), ("pavement", "#3c28de"),
    ("tree", "#808000"), ("sign_symbol", "#c08080"), ("fence", "#404080"), ("car", "#400080"),
    ("pedestrian", "#404000"), ("bicyclist", "#0080c0"),
)  # fmt: skip


def recognise(folder: SetFolder) -> Signs:
    return signs(
        ("a list train.txt, val.txt or test.txt", any(folder.is_file(f"{split}.txt") for split in SPLITS)),
        ("a folder trainannot/, valannot/ or testannot/", any(folder.is_dir(f"{split}annot") for split in SPLITS)),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List the samples of train.txt, val.txt and test.txt; group: the sequence, which is the name up to '_'.

    The lists' paths are another machine's: their last two parts count. Masks hold 0..10 and 11 for void.
    """
    rows: list[Row] = []
    issues: list[Issue] = []
    notes = []
    for split in SPLITS:
        name = f"{split}.txt"
        if not folder.is_file(name):
            continue
        if not folder.is_dir(f"{split}annot"):
            notes.append(f"{name} is left out: its folder {split}annot/ is not there")
            continue
        for number, line in folder.lines(name):
            found = _row(folder, line, split)
            if isinstance(found, Row):
                rows.append(found)
            else:
                issues.append(bad_line(name, number, line, found))
    rows, repeats = without_repeats(rows)
    names, colours = zip(*CLASSES, strict=True)
    return SourceContents(
        classes=named(names, colours),
        rows=rows,
        load=lambda row: _load(folder, row),
        ignore_id=VOID,
        issues=issues + repeats,
        notes=notes,
    )


def _row(folder: SetFolder, line: str, split: str) -> Row | str:
    """Return the sample a line names, or what is wrong with the line."""
    paths = [PurePosixPath(path) for path in re.split(r"[\s,;]+", line.replace("\\", "/").strip(",;"))]
    if len(paths) != 2:
        return f"it holds {len(paths)} paths, not an image's and a mask's"
    names = []
    for path in paths:
        parts = path.parts[-2:]
        if len(parts) < 2 or ".." in path.parts or parts[0] == "/":
            return f"'{path}' is no path that ends in FOLDER/FILE"
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return f"'{path.suffix}' is not one of {', '.join(IMAGE_SUFFIXES)}"
        names.append("/".join(parts))
        if not folder.is_file(names[-1]):
            return f"{names[-1]} is no file in this set"
    return Row(paths[0].stem, names[0], names[1], group=paths[0].stem.split("_")[0], split=split)


def _load(folder: SetFolder, row: Row) -> Loaded:
    return read_pair(folder, row, as_it_is)
