"""Pascal VOC: JPEGImages, SegmentationClass (palette PNG), ImageSets/Segmentation/*.txt."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.formats.reading import (
    Loaded,
    Row,
    SetFolder,
    Signs,
    SourceContents,
    bad_line,
    join,
    named,
    read_pair,
    signs,
    small_values,
    stem,
    without_repeats,
)
from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.schema.manifest import IGNORE_ID, SPLITS, DatasetInfo
from segmill.data.schema.mask_values import Scheme, distinct_palette
from segmill.data.storage.images import is_plain_mask, read_raw_mask
from segmill.data.storage.raw_set import IMAGE_SUFFIXES
from segmill.errors import InputError

LOOKS_FOR = (
    "JPEGImages/ and SegmentationClass/, here, in a folder, or in VOCdevkit/VOC*/ (lists in ImageSets/Segmentation/)"
)
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 0xE0E0C0  # the colour of 255 in VOC's map


def recognise(folder: SetFolder) -> Signs:
    tops = _tops(folder, IMAGES) or _tops(folder, MASKS)
    return signs(
        (f"{IMAGES}/", any(folder.is_dir(join(top, IMAGES)) for top in tops)),
        (f"{MASKS}/", any(folder.is_dir(join(top, MASKS)) for top in tops)),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List the samples that train.txt and val.txt name; without lists, every image that has a mask.

    Masks hold 0..20 and 255 for borders, as palette indices or, converted back, in VOC's colours.
    """
    tops = _tops(folder, IMAGES)
    if len(tops) > 1:
        raise InputError(f"there are several sets of VOC ({', '.join(tops)})", "name the folder of one of them")
    top = tops[0]
    images = {stem(name): name for name in folder.files(join(top, IMAGES), IMAGE_SUFFIXES)}
    masks = {stem(name): name for name in folder.files(join(top, MASKS), IMAGE_SUFFIXES)}
    rows: list[Row] = []
    issues: list[Issue] = []
    notes: list[str] = []
    lists = [name for name in folder.files(join(top, LISTS), (".txt",)) if "/" not in name]
    official = [f"{split}.txt" for split in SPLITS if f"{split}.txt" in lists]
    chosen = official or [name for name in ("trainval.txt",) if name in lists]
    for name in chosen:
        file, split = join(top, f"{LISTS}/{name}"), stem(name)
        named_here = [(number, line, *_id(line)) for number, line in folder.lines(file)]
        if split == "test" and not any(sample_id in masks for _, _, sample_id, _ in named_here):
            notes.append(f"test.txt is left out: none of its {len(named_here)} images has a mask")
            continue
        for number, line, sample_id, wrong in named_here:
            if wrong or sample_id not in images or sample_id not in masks:
                missing = f"{MASKS}/{sample_id}.png" if sample_id in images else f"{IMAGES}/{sample_id}.jpg"
                issues.append(bad_line(file, number, line, wrong or f"{missing} is no file in this set"))
                continue
            image, mask = (join(top, f"{d}/{found[sample_id]}") for d, found in ((IMAGES, images), (MASKS, masks)))
            rows.append(Row(sample_id, image, mask, split=split if official else None))
    if not chosen:
        notes.append(
            f"{LISTS}/ has none of train.txt, val.txt, test.txt, trainval.txt: "
            "every image with a mask was taken, and none assigned to a split"
        )
        rows = [
            Row(i, join(top, f"{IMAGES}/{images[i]}"), join(top, f"{MASKS}/{masks[i]}")) for i in masks if i in images
        ]
        issues += [
            wrong_file(join(top, f"{MASKS}/{masks[i]}"), "this mask has no image", "add the image or remove the mask")
            for i in masks
            if i not in images
        ]
    rows, repeats = without_repeats(rows)
    spare = len(masks.keys() - {row.id for row in rows})
    if chosen and spare:
        notes.append(f"{spare} masks are left out, which no list taken names")
    scheme = _colours()
    return SourceContents(
        classes=named(CLASSES, distinct_palette(len(CLASSES))),
        rows=rows,
        load=lambda row: _load(folder, scheme, row),
        issues=issues + repeats,
        notes=notes,
    )


def _tops(folder: SetFolder, inside: str) -> list[str]:
    """Return where in the set a VOC is: right there, in a folder (VOC2012), or in VOCdevkit/VOC2012."""
    tops = ["", *folder.folders(), *(f"VOCdevkit/{name}" for name in folder.folders("VOCdevkit"))]
    return [top for top in tops if folder.is_dir(join(top, inside))]


def _id(line: str) -> tuple[str, str]:
    """Return the id of a list's line (a second column, as of the lists per class, is passed over) and what is wrong."""
    sample_id = re.split(r"[\s,;]+", line)[0]
    if not re.fullmatch(r"[^/\\\0]+", sample_id) or sample_id in (".", ".."):
        return sample_id, "it is no image's name"
    return stem(sample_id) if sample_id.lower().endswith(IMAGE_SUFFIXES) else sample_id, ""


def _colours() -> Scheme:
    known = {int(colour[1:], 16): i for i, colour in enumerate(distinct_palette(len(CLASSES)))} | {BORDER: IGNORE_ID}
    return Scheme("colour", tuple(sorted(known)), tuple(known[code] for code in sorted(known)))


def _load(folder: SetFolder, scheme: Scheme, row: Row) -> Loaded:
    def mask_of(content: bytes) -> bytes | NDArray[np.uint8]:
        if is_plain_mask(content):
            return content
        raw = read_raw_mask(content)
        return scheme.to_ids(raw) if raw.pixels.ndim == 3 else small_values(raw.pixels)

    return read_pair(folder, row, mask_of)
