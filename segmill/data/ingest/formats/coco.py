"""COCO: instances and stuff as polygons or RLE, stuff pixel maps, panoptic PNGs; each image painted into one mask.

JSON files are streamed, because those of COCO would take gigabytes as objects: what an image's mask is painted from
waits in a temporary file.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.formats.coco_files import Annotations, Complaints, is_deeper, stream_objects
from segmill.data.ingest.formats.painting import ObjectMask, decode_region, paint_objects
from segmill.data.ingest.formats.reading import (
    SPLIT_OF,
    Loaded,
    Row,
    SetFolder,
    Signs,
    SourceContents,
    about,
    join,
    lookup,
    named,
    signs,
    small_values,
    stem,
    without_repeats,
)
from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import IGNORE_ID, DatasetInfo
from segmill.data.storage.images import MAX_PIXELS, image_content, image_size, read_image, read_raw_mask
from segmill.errors import InputError

LOOKS_FOR = "*.json of COCO (images, annotations, categories), here, in annotations/ or beside the images of a split"
KINDS = ("panoptic", "stuff", "instances")
BACKGROUND = "background"
MAX_CLASSES = 254
_REFUSED = -1  # marks an image with a fault
_HEAD = 2**16  # bytes in which a COCO file shows one of its keys
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_NOT_MASKS = re.compile(r"captions|keypoints|image_info", re.IGNORECASE)


@dataclass
class _Set:
    """The images of all JSON files by number (a row's ``part``), and what is painted on them."""

    kinds: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    categories: dict[int, str] = field(default_factory=dict)
    class_of: dict[int, int] = field(default_factory=dict)
    fill: int = IGNORE_ID
    annotations: dict[str, Annotations] = field(default_factory=dict)
    maps: dict[int, str] = field(default_factory=dict)  # image -> its stuff pixel map


def recognise(folder: SetFolder) -> Signs:
    return signs((f"a JSON file of COCO with {', '.join(key.decode() for key in _KEYS)}", bool(_files(folder))))


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List the images of all JSON files; split: by the names of these (train, val, test) or of their folders.

    Class ids are the categories in order of their ids. What is painted, later over earlier: first, all is ignored
    where the set has panoptic or stuff labels (nobody said what the rest is), else background, which then is class 0;
    stuff; regions of ``iscrowd``, as ignore; objects from the largest to the smallest by area in pixels, equal ones in
    the file's order. Panoptic labels stand alone where every part of the set has them.
    """
    groups = _groups(folder)
    kinds, notes = _common_kinds(groups)
    found = _Set(kinds)
    for kind in kinds:
        for files in groups.values():
            _read_categories(folder, files[kind], found)
    _settle_classes(found)
    for key, files in groups.items():
        _read_part(folder, key, files, found)
    rows, repeats = without_repeats(found.rows)
    names = [found.categories[category] for category in sorted(found.categories)]
    if found.fill == 0 and BACKGROUND not in (name.lower() for name in names):
        names = [BACKGROUND, *names]
    return SourceContents(
        classes=named(names),
        rows=rows,
        load=lambda row: _load(folder, found, row),
        issues=found.issues + repeats,
        notes=notes,
    )


def _files(folder: SetFolder) -> list[str]:
    """Return the JSON files that look like COCO's, by their first bytes; captions and key points are not."""
    tops = ["", *folder.folders()]
    names = [join(top, name) for top in tops for name in folder.children(top) if name.lower().endswith(".json")]
    return [name for name in names if not _NOT_MASKS.search(name) and _looks_like_coco(folder, name)]


def _looks_like_coco(folder: SetFolder, name: str) -> bool:
    if not folder.is_file(name):
        return False
    with folder.resolve(name).open("rb") as file:
        head = file.read(_HEAD)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(key in head for key in _KEYS)


def _groups(folder: SetFolder) -> dict[str, dict[str, str]]:
    """Return part of the set (``train2017``) -> kind -> JSON file."""
    groups: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name in _files(folder):
        at, own = str(PurePosixPath(name).parent), stem(PurePosixPath(name).name)
        kind = next((kind for kind in KINDS if own.lower().startswith(kind)), None)
        key = re.sub(rf"^(?:{'|'.join(KINDS)})[_-]?", "", own, flags=re.IGNORECASE)
        if kind is None:
            kind = "panoptic" if "panoptic" in own.lower() else "instances"
            key = key if at in (".", "annotations") else at
        if kind in groups[key]:
            raise InputError(f"{groups[key][kind]} and {name} both label '{key}'", "take one of them out of the set")
        groups[key][kind] = name
    return dict(groups)


def _common_kinds(groups: dict[str, dict[str, str]]) -> tuple[tuple[str, ...], list[str]]:
    """Return the kinds that every part of the set has, panoptic alone, and a sentence of what is not used."""
    common = [kind for kind in KINDS if all(kind in files for files in groups.values())]
    if not common:
        listed = ", ".join(f"{key} ({' and '.join(files)})" for key, files in groups.items())
        raise InputError(f"its parts are not labelled alike: {listed}", "keep the parts that have the same kind")
    kinds = ("panoptic",) if "panoptic" in common else tuple(common)
    unused = sorted({name for files in groups.values() for kind, name in files.items() if kind not in kinds})
    return kinds, [f"{', '.join(unused)} {'is' if len(unused) == 1 else 'are'} left out"] if unused else []


def _read_categories(folder: SetFolder, file: str, found: _Set) -> None:
    for item in stream_objects(folder, file, "categories"):
        number, name = item.get("id"), item.get("name")
        if type(number) is not int or not isinstance(name, str) or not name.strip():
            raise InputError(f"{file}: category {str(item)[:80]} has no whole-numbered id and name", "correct it")
        if found.categories.setdefault(number, name) != name:
            raise InputError(
                f"{file}: category {number} is '{name}', and '{found.categories[number]}' in another file; "
                "make them agree"
            )


def _settle_classes(found: _Set) -> None:
    """Give the categories class ids, in order of their ids; 0 is background's where objects alone are labelled."""
    ordered = sorted(found.categories)
    if not ordered or len(ordered) > MAX_CLASSES:
        raise InputError(f"its JSON files name {len(ordered)} categories, and a class map takes 1 to {MAX_CLASSES}")
    by_name = {name.lower(): category for category, name in found.categories.items()}
    own = by_name.get(BACKGROUND)
    first = 0
    if found.kinds == ("instances",):
        found.fill, first = 0, 1
        if own is not None:
            found.fill, first = ordered.index(own), 0
    found.class_of = {category: index for index, category in enumerate(ordered, first)}


def _split(key: str) -> str | None:
    return next((SPLIT_OF[word] for word in re.split(r"[^a-z]+", key.lower()) if word in SPLIT_OF), None)


def _read_part(folder: SetFolder, key: str, files: dict[str, str], found: _Set) -> None:
    """Read images and annotations of one part of the set, kind by kind."""
    numbers: dict[Any, int] = {}
    beside = str(PurePosixPath(next(iter(files.values()))).parent)
    prefix = beside if beside not in (".", "annotations") else ""
    start = len(found.rows)
    places = _Places(folder, key, "" if beside == "." else beside)
    for kind in found.kinds:
        complaints = Complaints(files[kind])
        for item in stream_objects(folder, files[kind], "images"):
            number, name, height, width = (item.get(k) for k in ("id", "file_name", "height", "width"))
            if type(number) not in (int, str) or not isinstance(name, str) or not name:
                complaints.add(f"image {str(number)[:40]}", "it has no id and file_name", "correct or remove it")
            elif number not in numbers:
                numbers[number] = _REFUSED
                where = f"image {str(number)[:40]}"
                if type(height) is not int or type(width) is not int or not 0 < height * width <= MAX_PIXELS:
                    complaints.add(
                        where, f"its size is {str(height)[:20]} x {str(width)[:20]} px", "correct or remove it"
                    )
                    continue
                path = places.find(name)
                if path is None:
                    complaints.add(where, f"{name[:80]!r} is no file in this set", "add or remove it")
                    continue
                numbers[number] = len(found.sizes)
                sample_id = join(prefix, PurePosixPath(name).with_suffix("").as_posix())
                row = Row(sample_id, path, files[kind], split=_split(key) or _split(beside), part=len(found.sizes))
                found.rows.append(row)
                found.sizes.append((height, width))
        _read_annotations(folder, files[kind], kind, numbers, found, complaints)
        found.issues += complaints.issues()
    maps = f"{stem(files['stuff'])}_pixelmaps" if "stuff" in found.kinds else ""
    if maps and folder.is_dir(maps):
        for row in found.rows[start:]:
            pixel_map = f"{maps}/{PurePosixPath(row.image).stem}.png"
            if folder.is_file(pixel_map):
                found.maps[row.part] = pixel_map


class _Places:
    """Where the images of one part are: the folder that held the last one is tried first."""

    def __init__(self, folder: SetFolder, key: str, beside: str) -> None:
        self.folder = folder
        split = _split(key) or ""
        tops = [
            beside,
            "",
            "images",
            key,
            f"images/{key}",
            split,
            f"images/{split}",
            "JPEGImages",
            "data",
            f"data/{key}",
        ]
        self.tops = list(dict.fromkeys(tops))

    def find(self, name: str) -> str | None:
        for top in self.tops:
            path = join(top, name)
            if not name.startswith("/") and self.folder.is_file(path):
                if top != self.tops[0]:
                    self.tops.remove(top)
                    self.tops.insert(0, top)
                return path
        return None


def _read_annotations(
    folder: SetFolder, file: str, kind: str, numbers: dict[Any, int], found: _Set, complaints: Complaints
) -> None:
    if kind not in found.annotations:
        found.annotations[kind] = Annotations(tempfile.TemporaryFile())  # noqa: SIM115 (it lives as long as the rows)
    store = found.annotations[kind]
    outlined = total = 0
    for item in stream_objects(folder, file, "annotations"):
        total += 1
        image = item.get("image_id")
        where = f"annotation {str(item.get('id', image))[:40]}"
        number = numbers.get(image) if isinstance(image, int | str) else None
        if number is None:
            complaints.add(where, f"its image {str(image)[:40]!r} is not among the images", "correct or remove it")
            continue
        if number == _REFUSED:
            continue
        if kind == "panoptic":
            segments = item.get("segments_info")
            name = item.get("file_name")
            if not isinstance(segments, list) or not isinstance(name, str):
                complaints.add(where, "it has no file_name and segments_info", "correct or remove it")
                continue
            regions = {
                str(s["id"]): [s["category_id"], bool(s.get("iscrowd"))]
                for s in segments
                if isinstance(s, dict) and type(s.get("id")) is int and type(s.get("category_id")) is int
            }
            store.add(number, {"file": name, "json": file, "segments": regions})
            outlined += 1
            continue
        category = item.get("category_id")
        if type(category) is not int or category not in found.class_of:
            complaints.add(where, f"its category {str(category)[:40]} is not among the categories", "correct it")
            continue
        outline = item.get("segmentation")
        if not outline:
            complaints.add(where, "it has no segmentation", "outline the object or remove the annotation")
            continue
        outlined += 1
        if is_deeper(outline, 3):
            complaints.add(where, "its segmentation is no list of polygons and no RLE", "correct it")
            continue
        region = {"category": category, "crowd": bool(item.get("iscrowd")), "of": outline}
        store.add(number, region | {"where": f"{file}, {where}"})
    if total and not outlined:
        raise InputError(f"none of the {total} annotations of {file} outlines anything", "boxes alone make no masks")


def _load(folder: SetFolder, found: _Set, row: Row) -> Loaded:
    content, suffix = about(row.image, image_content, folder.content(row.image))
    size = about(row.image, image_size, content)
    if size != found.sizes[row.part]:
        raise InputError(
            f"image {row.image} is {size[0]} x {size[1]} px (height x width), and by this file "
            f"{found.sizes[row.part][0]} x {found.sizes[row.part][1]}; correct one of them"
        )
    if found.kinds == ("panoptic",):
        return Loaded(content, suffix, _panoptic(folder, found, row, size))
    mask_HW = np.full(size, found.fill, np.uint8)
    if row.part in found.maps:
        name = found.maps[row.part]
        table = lookup({c: i for c, i in found.class_of.items() if 0 <= c < 256})
        values = about(name, lambda: small_values(read_raw_mask(folder.content(name)).pixels))
        if values.shape != size:
            raise InputError(f"pixel map {name} is {values.shape} px (height, width), its image {size}", "correct it")
        mask_HW = table[values]
    elif "stuff" in found.annotations:
        for region in found.annotations["stuff"].of(row.part):
            _patch(region, size).paint(mask_HW, found.class_of[region["category"]])
    if "instances" in found.annotations:
        _paint(mask_HW, found, row.part)
    return Loaded(content, suffix, mask_HW)


def _paint(mask_HW: NDArray[np.uint8], found: _Set, number: int) -> None:
    """Paint the crowds as ignore, then the objects."""
    objects = []
    for region in found.annotations["instances"].of(number):
        patch = _patch(region, mask_HW.shape)
        if region["crowd"]:
            patch.paint(mask_HW, IGNORE_ID)
        else:
            objects.append((patch, found.class_of[region["category"]]))
    paint_objects(mask_HW, objects)


def _panoptic(folder: SetFolder, found: _Set, row: Row, size: tuple[int, int]) -> NDArray[np.uint8]:
    regions = list(found.annotations["panoptic"].of(row.part))
    if len(regions) != 1:
        raise InputError(f"image {row.image} has {len(regions)} panoptic annotations, not one", "correct the file")
    file, at = regions[0]["file"], stem(regions[0]["json"])
    places = [f"{at}/{file}", join(PurePosixPath(at).name, file), f"annotations/{PurePosixPath(at).name}/{file}"]
    name = next((place for place in places if not file.startswith("/") and folder.is_file(place)), None)
    if name is None:
        raise InputError(f"{at}/{file[:80]} is no file in this set", "add the panoptic PNG")
    rgb = about(name, read_image, folder.content(name))
    if rgb.shape[:2] != size or rgb.shape[2] != 3:
        raise InputError(f"{name} is {rgb.shape}, not the colours of an image of {size} px", "correct it")
    wide = rgb.astype(np.int64)
    segment_ids, place = np.unique(wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2], return_inverse=True)
    ids = np.full(len(segment_ids), IGNORE_ID, np.uint8)
    for index, segment in enumerate(segment_ids.tolist()):
        category, crowd = regions[0]["segments"].get(str(segment), (None, False))
        if category in found.class_of and not crowd:
            ids[index] = found.class_of[category]
        elif segment != 0 and not crowd:
            what = "no segment of the JSON file" if category is None else f"of the unknown category {category}"
            raise InputError(f"{name} holds the segment {segment}, which is {what}", "correct one of them")
    return ids[place].reshape(size)


def _patch(region: dict[str, Any], size: tuple[int, ...]) -> ObjectMask:
    try:
        return decode_region(region["of"], size[0], size[1])
    except InputError as error:
        raise InputError(f"{region['where']}: {error.what}", error.fix) from error
