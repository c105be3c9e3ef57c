"""A mask file per object, in a folder per image: ID/images with ID/masks (DSB2018), or images/ID.png with masks/ID."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.formats.painting import ObjectMask, paint_objects
from segmill.data.ingest.formats.reading import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SPLIT_OF,
    Loaded,
    Row,
    SetFolder,
    Signs,
    SourceContents,
    about,
    join,
    named,
    signs,
    stem,
    without_repeats,
)
from segmill.data.schema.issues import wrong_file
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.storage.images import image_content, image_size, read_raw_mask
from segmill.data.storage.raw_set import IMAGE_SUFFIXES
from segmill.errors import InputError

LOOKS_FOR = (
    "a folder per image with images/ (one file) and masks/ (a file per object), or images/ID.png with masks/ID/*.png"
)
OBJECT = "object"
_NAMES_NOTHING = ("mask", "masks", "label", "instance", "inst", "object", "obj", "seg")
_HASH = re.compile(r"[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER = re.compile(r"^\d+[-_. ]?|[-_. ]?\d+$")
_LOOKED_AT = 50  # images, to recognise the layout by
MAX_CLASSES = 254


def recognise(folder: SetFolder) -> Signs:
    first = list(itertools.islice((frame for frame in _frames(folder) if frame.row.mask), _LOOKED_AT))
    several = any(frame.images == 1 and not _is_plain_pair(folder, frame) for frame in first)
    return signs(
        ("a folder of masks for each image (ID/images/ with ID/masks/, or images/ID.png with masks/ID/)", bool(first)),
        ("masks of single objects in it", several),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List the images that have a folder of masks. Whatever is not 0 in a mask file is its object.

    The class is a mask's name without numbers at its ends (``car_3.png``); names that are numbers or hashes are all
    ``object``. Objects are painted over background from the largest to the smallest, equal ones by name. A folder
    train, val or test on the way is the split.
    """
    frames = list(_frames(folder))
    rows, repeats = without_repeats(frame.row for frame in frames if frame.row.mask)
    bare = sum(not frame.row.mask for frame in frames)
    notes = [f"{bare} images are left out: they have no folder of masks"] if bare else []
    several = {frame.row.id for frame in frames if frame.images > 1}
    issues = [
        wrong_file(row.image, "there are several images for one folder of masks", "leave one")
        for row in rows
        if row.id in several
    ]
    seen: dict[str | None, str] = {}
    for row in rows:
        for name in folder.files(row.mask):
            kind = _class_of(name)
            if kind not in seen:
                seen[kind] = join(row.mask, name)
                if len(seen) > MAX_CLASSES:
                    raise InputError(
                        f"the mask files name more than {MAX_CLASSES} classes", "name them CLASS_NUMBER.png"
                    )
    kinds = sorted(kind for kind in seen if kind is not None)
    if None in seen and kinds:
        raise InputError(
            f"{seen[None]} names no class as {seen[kinds[0]]} does ('{kinds[0]}'); name all mask files CLASS_NUMBER.png"
        )
    if len(kinds) == 1 and kinds[0].lower() in _NAMES_NOTHING:
        kinds = []
    names = ["background", *(kinds or [OBJECT])]
    ids = {kind: index for index, kind in enumerate(kinds, 1)}
    return SourceContents(
        classes=named(names),
        rows=[row for row in rows if row.id not in several],
        load=lambda row: _load(folder, ids, row),
        issues=issues + repeats,
        notes=notes + ([] if kinds else [f"the mask files name no class: their objects are all of one, '{OBJECT}'"]),
    )


class _Frame(NamedTuple):
    """An image. ``row.mask``: its folder of masks, empty where it has none, ``named`` after the image or not;
    ``images``: how many image files could belong to that folder."""

    row: Row
    images: int
    named: bool


def _frames(folder: SetFolder) -> Iterator[_Frame]:
    for top in _tops(folder):
        names = {name.lower(): name for name in folder.folders(top)}
        images = next((names[one] for one in IMAGE_FOLDERS if one in names), None)
        masks = next((names[one] for one in MASK_FOLDERS if one in names), None)
        if images is None:
            continue
        images = join(top, images)
        files = [name for name in folder.children(images) if name.lower().endswith(IMAGE_SUFFIXES)]
        if masks is None:
            if top and files:
                yield _Frame(_row(top, join(images, files[0]), ""), 1, False)
            continue
        masks = join(top, masks)
        per_image = set(folder.folders(masks))
        alike = Counter(stem(name) for name in files)
        if per_image & alike.keys():
            for name in files:
                own = join(masks, stem(name)) if stem(name) in per_image else ""
                yield _Frame(_row(join(top, stem(name)), join(images, name), own), alike[stem(name)], True)
        elif top and files and folder.has_file(masks):
            yield _Frame(_row(top, join(images, files[0]), masks), len(files), False)


def _tops(folder: SetFolder) -> Iterator[str]:
    yield ""
    for first in folder.folders():
        yield first
        for second in folder.folders(first):
            yield join(first, second)


def _row(sample_id: str, image: str, masks: str) -> Row:
    parts = [part.lower() for part in PurePosixPath(sample_id).parts[:-1]]
    split = next((SPLIT_OF[part] for part in parts if part in SPLIT_OF), None)
    return Row(sample_id, image, masks, split=split)


def _is_plain_pair(folder: SetFolder, frame: _Frame) -> bool:
    """Tell whether the folder of masks holds one mask per image, named after it: that is layout ``folders``."""
    own = stem(frame.row.image.rpartition("/")[2])
    return not frame.named and all(stem(name).lower().startswith(own.lower()) for name in folder.files(frame.row.mask))


def _class_of(name: str) -> str | None:
    own = stem(name.rpartition("/")[2])
    if _HASH.fullmatch(own):
        return None
    rest = _NUMBER.sub("", _NUMBER.sub("", own))
    return rest if re.search(r"[^\W\d_]", rest) else None


def _load(folder: SetFolder, ids: dict[str, int], row: Row) -> Loaded:
    content, suffix = about(row.image, image_content, folder.content(row.image))
    size = about(row.image, image_size, content)
    objects: list[tuple[ObjectMask, int]] = []
    for name in folder.files(row.mask):  # in order of their names
        file = join(row.mask, name)
        inside = about(file, _object, folder.content(file), size)
        objects.append((ObjectMask.of(inside), ids.get(_class_of(name) or "", 1)))
    mask_HW = np.zeros(size, np.uint8)
    paint_objects(mask_HW, objects)
    return Loaded(content, suffix, mask_HW)


def _object(content: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    raw = read_raw_mask(content)
    pixels = raw.pixels if raw.pixels.ndim == 2 else raw.pixels.max(2)
    if pixels.shape != size:
        raise InputError(f"it is {pixels.shape} px (height, width), its image {size}", "make them the same size")
    return pixels > raw.top // 2 if raw.lossy else pixels > 0
