"""What the readers of layouts share: files that stay inside the set, list files, rows, and their way to samples."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.intake import NewSample
from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.schema.manifest import IGNORE_ID, SPLITS, ClassInfo, DatasetInfo
from segmill.data.schema.mask_values import distinct_palette
from segmill.data.splitting.splits import part_of_group
from segmill.data.storage.images import (
    encode_png,
    image_content,
    image_size,
    is_plain_mask,
    read_mask,
    read_raw_mask,
)
from segmill.data.storage.raw_set import IMAGE_SUFFIXES
from segmill.data.validation.mask_faults import OFF_BY_PX, orientation
from segmill.errors import InputError, near_miss

MAX_BYTES = 2**30  # of one file; 8192 x 8192 px of 16-bit colour are less than half of it
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")
SPLIT_OF = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
IMAGE_FOLDERS = ("images", "imgs", "img", "jpegimages", "image", "pictures", "photos", "rgb", "inputs", "input")
MASK_FOLDERS = (
    "masks", "labels", "annotations", "gt", "segmentationclass", "mask", "label", "annotation", "annots", "annot",
    "ground_truth", "groundtruth", "segmentations", "segmentation", "targets", "target",
)  # fmt: skip
_SHOWN = 80  # characters of a bad line
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a foreign set, before its bytes are read. ``image`` and ``mask`` are paths in the set; a reader
    that cuts several samples out of one file tells them apart by ``part``. ``columns``: what else is known of it."""

    id: str
    image: str
    mask: str
    group: str | None = None
    split: str | None = None
    part: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A sample's bytes: ``image`` of 8 bits per channel in a format of ``suffix``; ``mask`` as a PNG that fits as it
    is, or HW uint8 class ids."""

    image: bytes
    suffix: str
    mask: bytes | NDArray[np.uint8]


@dataclass
class SourceContents:
    """What a reader found in a set: the class map of the masks it delivers, the rows, and how to load one.

    ``load`` raises InputError for what it can't read. ``matched``: the masks follow the class map of ``info`` already.
    ``info``: a canonical set's own, kept whole.
    """

    classes: tuple[ClassInfo, ...]
    rows: list[Row]
    load: Callable[[Row], Loaded]
    ignore_id: int = IGNORE_ID
    issues: list[Issue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    license: str = ""
    matched: bool = False
    info: DatasetInfo | None = None


@dataclass(frozen=True)
class Signs:
    """What of a layout was looked for in a folder: recognised where nothing is missing."""

    found: list[str]
    missing: list[str]

    @property
    def hold(self) -> bool:
        return not self.missing


def signs(*looked_for: tuple[str, bool]) -> Signs:
    """Sort what was looked for into found and missing."""
    return Signs([what for what, there in looked_for if there], [what for what, there in looked_for if not there])


class SetFolder:
    """The folder of a foreign set. Nothing outside of it is read, wherever links and '..' lead."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def resolve(self, name: str) -> Path:
        """Return where ``name``, a path in the set, really is. InputError where that is outside or no such path."""
        try:
            path = (self.root / name).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, links in a ring
            raise InputError("its path can't be followed", "correct it") from error
        if not path.is_relative_to(self.root):
            raise InputError("it leads out of the set's folder", "put the file itself there")
        return path

    def is_dir(self, name: str) -> bool:
        return self._is(name, stat.S_ISDIR)

    def is_file(self, name: str) -> bool:
        """Tell whether ``name`` is a regular file inside the set; a pipe or device is none."""
        return self._is(name, stat.S_ISREG)

    def _is(self, name: str, kind: Callable[[int], bool]) -> bool:
        try:
            return kind(os.stat(self.resolve(name)).st_mode)
        except (InputError, OSError):
            return False

    def content(self, name: str) -> bytes:
        """Return a file's content. FileError where it is missing, no regular file, outside or above MAX_BYTES."""
        return about(name, lambda: self._content(self.resolve(name)))

    def _content(self, path: Path) -> bytes:
        try:
            facts = os.stat(path)
            if not stat.S_ISREG(facts.st_mode):
                raise InputError("it is no regular file", "put the file itself there")
            if facts.st_size > MAX_BYTES:
                size = f"it has {facts.st_size / 2**20:.0f} MiB, more than {MAX_BYTES // 2**20}"
                raise InputError(size, "cut it into tiles")
            return path.read_bytes()
        except FileNotFoundError as error:
            raise InputError("it does not exist", "add it or remove what names it") from error
        except OSError as error:
            raise InputError(f"it can't be opened ({error.strerror})", "check the file and its rights") from error

    def children(self, name: str = "") -> list[str]:
        """Return the names directly in a folder of the set in order, but hidden ones; none where it is no folder."""
        try:
            with os.scandir(self.resolve(name)) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and e.name not in JUNK)
        except (InputError, OSError):
            return []

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders directly in a folder, links to folders inside the set included."""
        return [child for child in self.children(name) if self.is_dir(join(name, child))]

    def files(self, name: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Iterator[str]:
        """Yield the files of ``suffixes`` below a folder, as paths relative to that folder, in order.

        Links to folders are not followed, except where the folder itself is one.
        """
        try:
            top = self.resolve(name)
        except InputError:
            return
        ends = tuple(suffix.lower() for suffix in suffixes)
        for at, inner, files in os.walk(top):
            inner[:] = sorted(one for one in inner if not one.startswith(".") and one not in JUNK)
            below = Path(at).relative_to(top).as_posix()
            for file in sorted(files):
                if not file.startswith(".") and file not in JUNK and file.lower().endswith(ends):
                    yield join("" if below == "." else below, file)

    def has_file(self, name: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
        """Tell whether a file of ``suffixes`` is anywhere below a folder."""
        return next(self.files(name, suffixes), None) is not None

    def lines(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield number and text of the lines of a list file that say something: not blank, no comment ('#')."""
        text = self.content(name).decode("utf-8-sig", errors="replace")
        for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, line.strip()


def join(folder: str, name: str) -> str:
    """Return ``folder/name``, or ``name`` where the folder is the set's own."""
    return f"{folder}/{name}" if folder else name


def stem(name: str) -> str:
    """Return a path without the suffix of its last part."""
    return PurePosixPath(name).with_suffix("").as_posix()


def bad_line(file: str, number: int, line: str, what: str, fix: str = "correct or remove the line") -> Issue:
    """Return the issue of a list file's line."""
    shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
    return wrong_file(f"{file}, line {number}", f"{what}: {shown!r}", fix)


def issue_from(file: str, error: InputError) -> Issue:
    """Return an InputError about a file as its issue."""
    return wrong_file(file, error.what, error.fix or "replace or remove it")


def named(names: Sequence[str], colours: Sequence[str] | None = None) -> tuple[ClassInfo, ...]:
    """Return classes 0.. of these names, equal names told apart, in ``colours`` or ones that all differ."""
    seen: dict[str, int] = {}
    unique = []
    for index, name in enumerate(names):
        key = " ".join(name.split()) or f"class_{index}"
        unique.append(key if seen.setdefault(key.lower(), index) == index else f"{key}_{index}")
    return tuple(
        ClassInfo(i, name, colour)
        for i, (name, colour) in enumerate(zip(unique, colours or distinct_palette(len(names)), strict=True))
    )


def lookup(pairs: dict[int, int], default: int = IGNORE_ID) -> NDArray[np.uint8]:
    """Return a table of 256 that turns mask values into class ids; what ``pairs`` does not name becomes ``default``."""
    table = np.full(256, default, np.uint8)
    for value, class_id in pairs.items():
        table[value] = class_id
    return table


def read_pair(folder: SetFolder, row: Row, mask_of: Callable[[bytes], bytes | NDArray[np.uint8]]) -> Loaded:
    """Load an image file and a mask file; the error's message tells of which of them it speaks."""
    image, suffix = about(row.image, image_content, folder.content(row.image))
    return Loaded(image, suffix, about(row.mask, mask_of, folder.content(row.mask)))


def as_it_is(content: bytes) -> bytes | NDArray[np.uint8]:
    """Take a mask whose values are class ids: a PNG that ``read_mask`` reads passes undecoded, others are decoded."""
    if is_plain_mask(content):
        return content
    return small_values(read_raw_mask(content).pixels)


def by_table(table: NDArray[np.uint8]) -> Callable[[bytes], NDArray[np.uint8]]:
    """Return a reader of masks whose values ``table`` (256 of them) turns into class ids."""
    return lambda content: table[small_values(read_raw_mask(content).pixels)]


def small_values(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return HW whole numbers as uint8. InputError for colours and for values above 255."""
    if pixels.ndim == 3:
        raise InputError("it has colours where class ids belong", "export class ids")
    if pixels.size and pixels.max() > 255:
        raise InputError(f"it holds the value {int(pixels.max())}, and class ids end at 255", "correct the mask")
    return pixels.astype(np.uint8)


class FileError(InputError):
    """What is wrong with one file of a sample."""

    def __init__(self, file: str, error: InputError) -> None:
        super().__init__(error.what, error.fix)
        self.file = file


def about(file: str, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``read(*args, **kwargs)``; an InputError it raises is said to be about ``file``."""
    try:
        return read(*args, **kwargs)
    except FileError:
        raise
    except InputError as error:
        raise FileError(file, error) from error


def deliver(contents: SourceContents, table: NDArray[np.int16] | None) -> Iterator[NewSample | Issue]:
    """Yield the issues of the listing, then every row as a sample or as what is wrong with it, one at a time.

    What is wrong with a file that holds many samples in a row is said once.
    ``table`` turns the class ids of the contents into those of the set they go to; None leaves them.
    """
    yield from contents.issues
    said: Issue | None = None
    for row in contents.rows:
        try:
            loaded = contents.load(row)
            mask = loaded.mask
            if table is not None:
                mask = about(row.mask, _renumber, mask, table)
            content = mask if isinstance(mask, bytes) else encode_png(mask)
            about(row.mask, _refuse_other_size, loaded.image, content)
        except InputError as error:
            issue = issue_from(error.file if isinstance(error, FileError) else row.mask, error)
            if issue != said:
                yield issue
            said = issue
        else:
            yield NewSample(row.id, loaded.image, loaded.suffix, content, row.group, row.split, row.columns)


def _refuse_other_size(image: bytes, mask: bytes) -> None:
    """Raise InputError for a mask of another size than its image, unless `segmill validate --fix` could repair that."""
    (height, width), own = image_size(image), image_size(mask)
    near = max(abs(own[0] - height), abs(own[1] - width)) <= OFF_BY_PX
    before_exif = own == (width, height) and orientation(image) != 1
    if not near and not before_exif:
        raise InputError(
            f"the mask has {own[0]} x {own[1]} px (height x width) and its image {height} x {width}",
            "make them the same size",
        )


def _renumber(mask: bytes | NDArray[np.uint8], table: NDArray[np.int16]) -> NDArray[np.uint8]:
    ids = read_mask(mask) if isinstance(mask, bytes) else mask
    mapped = table[ids]
    if (mapped < 0).any():
        strange = np.unique(ids[mapped < 0])[:10].tolist()
        raise InputError(f"it holds class ids {strange} that its own class map does not have", "correct the mask")
    return mapped.astype(np.uint8)


def match_classes(contents: SourceContents, info: DatasetInfo) -> NDArray[np.int16] | None:
    """Return the table from class ids of ``contents`` to those of ``info``, by name; None where nothing changes.

    Case, '_', '-' and spaces make no difference; -1 marks ids of no class. InputError names the classes that the set
    does not have.
    """
    if contents.matched:
        return None
    theirs = {_key(one.name): one.id for one in info.classes}
    unknown = [one.name for one in contents.classes if _key(one.name) not in theirs]
    if unknown:
        hint = near_miss(unknown[0], list(info.class_names))
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise InputError(
            f"the classes {shown} are not among those of the set '{info.name}' ({', '.join(info.class_names)}){hint}; "
            "rename them in the source or make a set of its own"
        )
    pairs = {one.id: theirs[_key(one.name)] for one in contents.classes} | {contents.ignore_id: info.ignore_id}
    if all(before == after for before, after in pairs.items()):
        return None
    table = np.full(256, -1, np.int16)
    for before, after in pairs.items():
        table[before] = after
    return table


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def apply_group_rule(rows: Iterable[Row], rule: str) -> tuple[list[Row], list[Issue]]:
    """Return the rows with the groups that the regular expression ``rule`` finds in their ids; issues where none."""
    pattern = re.compile(rule)
    kept, issues = [], []
    for row in rows:
        match = pattern.search(row.id)
        if match and match["group"]:
            kept.append(replace(row, group=match["group"]))
        else:
            what = f"the group rule '{rule}' finds nothing in its id '{row.id}'"
            issues.append(wrong_file(row.image, what, "rename it or correct the rule"))
    return kept, issues


def part_cut_groups(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Name the parts of groups that an official split cuts GROUP@SPLIT, so that it can stand; say so in a sentence.

    Rows of such a group that no split names go to its part in train, else val's: what test sees stays as it is.
    """
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.group is not None and row.split is not None:
            splits[row.group].add(row.split)
    cut = {group: min(found, key=SPLITS.index) for group, found in splits.items() if len(found) > 1}
    if not cut:
        return rows, []
    parted = [
        replace(row, group=part_of_group(row.group, row.split or cut[row.group])) if row.group in cut else row
        for row in rows
    ]
    names = ", ".join(sorted(cut)[:10]) + (", ..." if len(cut) > 10 else "")
    kinds = [split for split in SPLITS if any(split in splits[group] for group in cut)]
    which = "the group" if len(cut) == 1 else f"{len(cut)} groups"
    return parted, [
        f"the official splits cut {which} {names} ({', '.join(kinds)}): "
        "the parts are named GROUP@SPLIT; what is alike across them flatters the scores"
    ]


def without_repeats(rows: Iterable[Row]) -> tuple[list[Row], list[Issue]]:
    """Return the rows of ids that come first, and an issue for every id that comes again."""
    kept: dict[str, Row] = {}
    issues = []
    for row in rows:
        first = kept.setdefault(row.id, row)
        if first is not row:
            same = f"it gives the same id '{row.id}' as {first.image}"
            issues.append(wrong_file(row.image, same, "rename or remove one"))
    return list(kept.values()), issues
