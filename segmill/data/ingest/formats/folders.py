"""Plain folders of images and of masks, found by their names; what the masks' values mean is worked out from them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.formats.reading import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SPLIT_OF,
    Row,
    SetFolder,
    Signs,
    SourceContents,
    issue_from,
    join,
    read_pair,
    signs,
    stem,
    without_repeats,
)
from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.schema.mask_values import Census, Scheme, ids_by_info
from segmill.data.storage.images import RawMask, is_plain_mask, read_raw_mask
from segmill.data.storage.parallel import map_ordered
from segmill.errors import InputError

LOOKS_FOR = (
    f"a folder of images ({', '.join(IMAGE_FOLDERS[:4])}, ...) beside one of masks ({', '.join(MASK_FOLDERS[:5])}, ...)"
    " with the same file names, here or in train/, val/, test/ or other folders"
)
_ENDS_MASK = re.compile(
    r"[-_. ](?:masks?|labels?|labelids|gt|ground_?truth|seg|segm|segmentation|annot|annotation|l)$", re.IGNORECASE
)
_ENDS_IMAGE = re.compile(r"[-_. ](?:image|img|rgb|sat|photo|input)$", re.IGNORECASE)
_DEPTH = 2  # folders of folders in which a pair of them may be


def recognise(folder: SetFolder) -> Signs:
    images, masks = _named(folder, IMAGE_FOLDERS), _named(folder, MASK_FOLDERS)
    pairs = _sides(folder)
    matching = any(_matches(folder, top, i, m) for top, ones, twos in pairs for i in ones for m in twos)
    return signs(
        (f"a folder of images ({images or ', '.join(IMAGE_FOLDERS)})", bool(images)),
        (f"a folder of masks ({masks or ', '.join(MASK_FOLDERS)})", bool(masks)),
        ("files of the same names in both", matching),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """Pair images and masks by name; a folder train, val or test on the way is the split, other folders the group.

    A mask may end in _mask, _label, _gt and the like. Masks' values are read as ``Census.propose`` says, after
    a look at all of them; where the set has its class map (``info``), as ``ids_by_info`` says.
    """
    rows: list[Row] = []
    issues: list[Issue] = []
    notes: list[str] = []
    for top, image_folders, mask_folders in _sides(folder):
        for kind, names in (("images", image_folders), ("masks", mask_folders)):
            if len(names) > 1:
                both = " and ".join(f"{join(top, name)}/" for name in names)
                raise InputError(f"both {both} could hold the {kind}", "move all but one out of the set")
        found = _pair(folder, top, join(top, image_folders[0]), join(top, mask_folders[0]))
        for collected, more in zip((rows, issues, notes), found, strict=True):
            collected += more  # type: ignore[operator]
    rows, repeats = without_repeats(rows)
    to_ids: Callable[[RawMask], NDArray[np.uint8]]
    counted = False  # every value is known to be its own class id
    if info is not None:
        to_ids, classes = functools.partial(ids_by_info, info=info), info.classes
    else:
        scheme, said = _propose(folder, [row.mask for row in rows])
        to_ids, classes, notes, counted = scheme.to_ids, scheme.classes, [said, *notes], scheme.keeps_values

    def mask_of(content: bytes) -> bytes | NDArray[np.uint8]:
        return content if counted and is_plain_mask(content) else to_ids(read_raw_mask(content))

    return SourceContents(
        classes=classes,
        rows=rows,
        load=lambda row: read_pair(folder, row, mask_of),
        issues=issues + repeats,
        notes=notes,
        matched=info is not None,
    )


def _named(folder: SetFolder, names: tuple[str, ...]) -> str:
    """Return the first folder of one of these names, here or in folders below."""
    for top in _tops(folder):
        for child in folder.folders(top):
            if child.lower() in names:
                return f"{join(top, child)}/"
    return ""


def _tops(folder: SetFolder) -> Iterator[str]:
    """Yield the set's own folder, then those in it, then those in these."""
    level = [""]
    for _ in range(_DEPTH + 1):
        yield from level
        level = [join(top, name) for top in level for name in folder.folders(top) if not _is_side(name)]


def _is_side(name: str) -> bool:
    return name.lower() in IMAGE_FOLDERS or name.lower() in MASK_FOLDERS


def _sides(folder: SetFolder) -> list[tuple[str, list[str], list[str]]]:
    """Return (where, folders of images, folders of masks) for each place that has both; places of one depth only."""
    sides: list[tuple[str, list[str], list[str]]] = []
    depth = 0
    for top in _tops(folder):
        here = top.count("/") + 1 if top else 0
        if here > depth and sides:
            break
        depth = here
        names = folder.folders(top)
        images, masks = (
            [n for n in names if n.lower() in allowed and folder.has_file(join(top, n))]
            for allowed in (IMAGE_FOLDERS, MASK_FOLDERS)
        )
        if images and masks:
            sides.append((top, images, masks))
    return sides


def _matches(folder: SetFolder, top: str, images: str, masks: str) -> bool:
    own = [stem(name) for name in folder.files(join(top, images))]
    keys = _mask_keys(folder, join(top, masks), own)[0]
    return any(_mask_for(name, keys) for name in own)


def _mask_keys(folder: SetFolder, masks: str, images: Collection[str]) -> tuple[dict[str, str], list[Issue]]:
    """Return what an image may be called -> mask, relative to ``masks``: its own stem, and that without its ending,
    where no image (``images``: their stems) has the whole one."""
    taken = set(images)
    keys: dict[str, str] = {}
    issues: list[Issue] = []
    names = list(folder.files(masks))
    for name in names:
        first = keys.setdefault(stem(name), name)
        if first != name:
            same = f"{first} has the same stem"
            issues.append(wrong_file(join(masks, name), same, "rename or remove one"))
    for name in names:
        if stem(name) not in taken:
            keys.setdefault(_ENDS_MASK.sub("", stem(name)), name)
    return keys, issues


def _mask_for(key: str, keys: dict[str, str]) -> str | None:
    return keys.get(key) or keys.get(_ENDS_IMAGE.sub("", key)) or keys.get(_ENDS_MASK.sub("", key))


def _pair(folder: SetFolder, top: str, images: str, masks: str) -> tuple[list[Row], list[Issue], list[str]]:
    names = list(folder.files(images))
    keys, issues = _mask_keys(folder, masks, [stem(name) for name in names])
    rows: list[Row] = []
    alone: dict[str | None, list[str]] = {}
    used: dict[str, Row] = {}
    for name in names:
        mask = _mask_for(stem(name), keys)
        split, group = _place(join(top, name))
        if mask is None:
            alone.setdefault(split, []).append(join(images, name))
            continue
        sample_id = join(top, _ENDS_IMAGE.sub("", stem(name)))
        row = Row(sample_id, join(images, name), join(masks, mask), group, split)
        first = used.setdefault(mask, row)
        if first.id == row.id:  # the same id twice is said with all others
            rows.append(row)
        else:
            issues.append(wrong_file(row.image, f"its mask {row.mask} is {first.image}'s too", "rename or remove one"))
    notes = []
    for split, bare in alone.items():
        if split == "test" and not any(row.split == "test" for row in rows):
            notes.append(f"test is left out: none of its {len(bare)} images has a mask")
            continue
        issues += [wrong_file(n, f"it has no mask in {masks}/", "add the mask or remove the image") for n in bare]
    unused = sorted(set(keys.values()) - used.keys())
    issues += [wrong_file(join(masks, n), f"it has no image in {images}/", "add it or remove the mask") for n in unused]
    return rows, issues, notes


def _place(name: str) -> tuple[str | None, str | None]:
    """Return split and group of a file by its folders: the first one named after a split, and all the others."""
    split, group = None, []
    for part in PurePosixPath(name).parts[:-1]:
        if split is None and part.lower() in SPLIT_OF:
            split = SPLIT_OF[part.lower()]
        else:
            group.append(part)
    return split, "/".join(group) or None


def _propose(folder: SetFolder, masks: list[str]) -> tuple[Scheme, str]:
    census = Census()
    wrong: list[Issue] = []
    for outcome in map_ordered(functools.partial(_count, folder.root), masks, chunk=16):
        if isinstance(outcome, Census):
            census.merge(outcome)
        else:
            wrong.append(outcome)
    if wrong and len(wrong) == len(masks):
        raise InputError(f"none of the {len(masks)} masks can be read", f"the first is {wrong[0]}")
    return census.propose()


def _count(root: Path, mask: str) -> Census | Issue:
    """Count one mask, in any process. What can't be read is found again, and said, when its sample is loaded."""
    census = Census()
    try:
        census.add(read_raw_mask(SetFolder(root).content(mask)))
    except InputError as error:
        return issue_from(mask, error)
    return census
