"""Looks at every file of a set once, in other processes: manifest rows of what is usable, issues of what is not."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.issues import KINDS, Issue, gather, issue_of
from segmill.data.schema.manifest import DatasetInfo, manifest_schema, part_columns, read_dataset_info
from segmill.data.schema.mask_values import MAX_CLASSES, propose_classes
from segmill.data.schema.samples import list_samples
from segmill.data.schema.special_files import special_files
from segmill.data.storage.images import read_image
from segmill.data.storage.parallel import BIG, map_ordered
from segmill.data.storage.raw_set import RawSample, StoredFile
from segmill.data.validation.leaks import image_hash
from segmill.data.validation.mask_faults import (
    OFF_BY_PX,
    TIFF_MAGIC,
    MaskLook,
    Together,
    ambiguous_shift,
    fits_turned,
    is_binary_mask,
    is_flat,
    look_at_mask,
    orientation,
    read_together,
)
from segmill.errors import InputError

if TYPE_CHECKING:
    import pyarrow

MAX_BYTES = 2**29  # of one file; twice what the largest image allowed takes without compression
_AT_ONCE = 32  # samples per message to another process
_BATCH = 4096  # rows that wait as Python objects before they become Arrow's


@dataclass(frozen=True)
class Examination:
    """What a look at every sample found.

    ``issues`` of samples and of all masks together; ``table``: the manifest's rows but for ``split`` of what is
    usable; ``hashes``: of their images; ``together``: what all masks say.
    """

    info: DatasetInfo
    issues: list[Issue]
    table: pyarrow.Table
    hashes: list[bytes]
    together: Together


class Checked(NamedTuple):
    """What came of one sample.

    ``row``: its manifest row without group and split, if it can be used. ``values``: raw value -> pixels of its mask,
    None where they say nothing. ``image_hash``: of leaks.py. ``colours``: of a colour mask.
    """

    row: dict[str, Any] | None
    issues: list[Issue]
    values: dict[int, int] | None = None
    image_hash: bytes = b""
    colours: tuple[str, ...] = ()


def examine(
    raw_dir: Path, *, jobs: int = 0, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> Examination:
    """Look at every sample under ``raw_dir``, in other processes: what crashes one of them is an issue of its file.

    InputError for what concerns the whole set: dataset.yaml, a missing folder.
    """
    info = read_dataset_info(raw_dir)
    special = special_files(raw_dir)
    entries, listed = list_samples(raw_dir)
    entries, issues = _usable(raw_dir, entries, listed, special)
    if not jobs:
        jobs = len(os.sched_getaffinity(0)) if len(entries) > BIG else 1
    check = functools.partial(check_sample, raw_dir, _without_lists(info))
    rows = _ManifestRows(info)
    seen: list[frozenset[int] | None] = []
    same: dict[frozenset[int], frozenset[int]] = {}
    pixels: Counter[int] = Counter()
    hashes: list[bytes] = []
    colours: set[str] = set()
    results = map_ordered(check, entries, jobs=jobs, chunk=_AT_ONCE, died=_crashed)
    for done, (entry, checked) in enumerate(zip(entries, results, strict=True), 1):
        issues += checked.issues
        colours.update(checked.colours if len(colours) <= MAX_CLASSES else ())
        group = info.group_of(entry.id)
        if group is None:
            issues.append(issue_of("group_rule", entry.image.name, detail=info.why_no_group(entry.id)))
        values = None if checked.values is None else frozenset(checked.values)
        seen.append(None if values is None else same.setdefault(values, values))
        pixels.update(checked.values or {})
        if checked.row is not None and group is not None:
            rows.add({**checked.row, "group": group})
            hashes.append(checked.image_hash)
        if done % _AT_ONCE == 0 or done == len(entries):
            on_progress(done, len(entries))
    together = read_together(info, Counter(values for values in seen if values is not None), pixels)
    if together.binary or together.shift:  # then neither 0 nor 255 means what it seems to
        issues = [issue for issue in issues if issue.kind not in ("empty_mask", "ignored_mask")]
    issues = [_with_proposal(issue, colours) for issue in issues]
    named = zip((entry.mask.name for entry in entries), seen, strict=True)
    issues += _of_all_masks(info, together, {*pixels}, named)
    issues = [*gather(issues), *_unused_classes(info, together)]
    return Examination(info, issues, rows.table(), hashes, together)


def check_sample(raw_dir: Path, info: DatasetInfo, entry: RawSample) -> Checked:
    """Look at one sample: decode it, and say what is wrong as far as it alone can tell."""
    issues: list[Issue] = []
    image_content, image = _decoded(raw_dir, entry.image, read_image, issues)
    mask_content, look = _decoded(raw_dir, entry.mask, functools.partial(look_at_mask, info=info), issues)
    if look is None:
        return Checked(None, issues)
    values = look.values if look.values or not look.kinds else None
    issues += _of_mask(info, entry, look, image, image_content)
    if image is None or look.ids is None or not look.readable or look.shape != image.shape[:2]:
        return Checked(None, issues, values, colours=look.colours)
    pixels = np.bincount(look.ids.ravel(), minlength=256)
    if pixels[info.num_classes :].sum() != pixels[info.ignore_id]:
        return Checked(None, issues, values)
    row = {
        "id": entry.id,
        **part_columns("image", entry.image),
        **part_columns("mask", entry.mask),
        "image_sha256": hashlib.sha256(image_content).hexdigest(),
        "mask_sha256": hashlib.sha256(mask_content).hexdigest(),
        "height": image.shape[0],
        "width": image.shape[1],
        "channels": image.shape[2],
        "class_pixels": pixels[: info.num_classes].tolist(),
        "ignored_pixels": int(pixels[info.ignore_id]),
        "findings": [issue.kind for issue in issues],
    }
    return Checked(row, issues, values, image_hash(image))


def _decoded(
    raw_dir: Path, file: StoredFile, read: Callable[[bytes], Any], issues: list[Issue]
) -> tuple[bytes, Any | None]:
    """Return the bytes of a file and what ``read`` makes of them; None, and an issue, where it can't."""
    try:
        size = os.stat(raw_dir / file.file).st_size if file.length is None else file.length
        if size > MAX_BYTES:
            what = f"its file takes {size // 2**20} MiB, more than {MAX_BYTES // 2**20}"
            raise InputError(what, "cut the image into tiles or compress it")
        content = file.read(raw_dir)
        with _silent() if content[:4] in TIFF_MAGIC else nullcontext():
            return content, read(content)
    except InputError as error:
        issues.append(issue_of("unreadable", file.name, detail=error.what, fix=error.fix))
    except OSError as error:
        why = f"it can't be opened: {error.strerror or error}"
        issues.append(issue_of("unreadable", file.name, detail=why, fix="check the file and its rights"))
    except Exception as error:  # whatever hostile bytes make a decoder raise says something of this file only
        why = f"decoding it fails with {type(error).__name__}: {error}"
        issues.append(issue_of("unreadable", file.name, detail=why))
    return b"", None


@contextmanager
def _silent() -> Iterator[None]:
    """Send what libtiff prints of broken files nowhere: it can't be asked to keep it."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _of_mask(
    info: DatasetInfo, entry: RawSample, look: MaskLook, image: NDArray[np.uint8] | None, image_content: bytes
) -> Iterator[Issue]:
    """Yield what is wrong with a mask, and with its image beside it."""
    mask = entry.mask.name
    for kind in look.kinds:
        repairable = look.two_level and info.num_classes == 2 if kind == "jpeg_mask" else None
        if kind == "colour_mask" and look.by_colour is not None:
            yield issue_of(
                kind, mask, detail="they are those of dataset.yaml", fix="turn them into ids", repairable=True
            )
        else:
            yield issue_of(kind, mask, fix="cut it at 128" if repairable else None, repairable=repairable)
    if image is None:
        return
    size = image.shape[:2]
    turned = orientation(image_content)
    fits = fits_turned(image, look.ids, turned) if turned != 1 and look.ids is not None else False
    if fits:
        yield issue_of("exif_rotated", mask, detail=f"{entry.image.name} has orientation {turned}")
    elif fits is None:
        yield issue_of("exif_unclear", mask, detail=f"{entry.image.name} has orientation {turned}")
    elif look.shape != size:
        detail = f"{look.shape[0]} x {look.shape[1]} px (height x width), the image {size[0]} x {size[1]}"
        close = max(abs(look.shape[0] - size[0]), abs(look.shape[1] - size[1])) <= OFF_BY_PX
        yield issue_of("off_by_a_pixel" if close else "size_mismatch", mask, detail=detail)
    if look.kinds or not look.values:
        return
    if set(look.values) == {info.ignore_id}:
        yield issue_of("ignored_mask", mask)
    elif is_flat(image):
        if len(set(look.values) - {info.ignore_id}) > 1:
            yield issue_of("flat_image", entry.image.name)
    elif set(look.values) - {info.ignore_id} == {0}:
        yield issue_of("empty_mask", mask)


def _crashed(entry: RawSample) -> Checked:
    detail = f"{entry.image.name} or {entry.mask.name}; memory may have run out"
    return Checked(None, [issue_of("crashes_decoder", entry.image.name, detail=detail)])


def _usable(
    raw_dir: Path, entries: Sequence[RawSample], listed: Iterable[Issue], special: Mapping[str, Issue]
) -> tuple[list[RawSample], list[Issue]]:
    """Return the entries that may be opened, and what is wrong with all other files, each said once."""
    said = {*special}
    issues = list(special.values())
    wrong_masks: set[str] = set()
    for issue in sorted(listed, key=lambda issue: issue.kind != "wrong_file_type"):
        stem = issue.file.partition("/")[2].rpartition(".")[0]
        if issue.file in said or (issue.kind == "missing_mask" and stem in wrong_masks):
            continue
        kind, detail = issue.kind, issue.what
        if kind == "wrong_file_type" and issue.file.startswith("masks/"):
            wrong_masks.add(stem)
            if issue.file.lower().endswith((".jpg", ".jpeg")):
                kind, detail = "jpeg_mask", "its file type says so"
        elif kind in ("missing_mask", "missing_image"):
            kind_of_other = "masks" if kind == "missing_mask" else "images"
            if any(name.startswith(f"{kind_of_other}/{stem}.") for name in special):
                continue
        issues.append(issue_of(kind, issue.file, detail=detail, repairable=False))
    root = os.path.realpath(raw_dir)
    holders = {part.file for entry in entries for part in (entry.image, entry.mask) if part.length is not None}
    real = {file: os.path.realpath(os.path.join(root, file)) for file in holders}
    outside = {file for file in holders if os.path.commonpath([root, real[file]]) != root}
    usable = []
    for entry in entries:
        if {entry.image.file, entry.mask.file} & outside:
            detail = f"index.parquet looks for it in {entry.image.file}"
            issues.append(issue_of("link_outside", entry.image.name, detail=detail))
        elif entry.image.file not in said and entry.mask.file not in said:
            usable.append(entry)
    return usable, issues


def _without_lists(info: DatasetInfo) -> DatasetInfo:
    """Leave out what may be large: this goes to other processes with every chunk, which need the classes only."""
    return replace(info, splits={}, group=None, samples_file=None)


def _of_all_masks(
    info: DatasetInfo, together: Together, ids: set[int], named: Iterable[tuple[str, frozenset[int] | None]]
) -> Iterator[Issue]:
    """Yield what the masks have whose values mean something only beside all others."""
    known = {*range(info.num_classes), info.ignore_id}
    hint = ambiguous_shift(info, ids)
    for name, values in named:
        if values is None:
            continue
        strange = sorted(values - known)
        if together.shift:
            sign = "+" if together.shift > 0 else "-"
            yield issue_of("shifted_ids", name, detail=f"{sign}1: they use {_listed(ids)}")
        elif is_binary_mask(values, together):
            repairable = info.num_classes == 2 and values <= {0, 255, info.ignore_id}
            yield issue_of("binary_0_255", name, repairable=repairable)
        elif strange and together.renumber:
            moves = ", ".join(f"{before} -> {after}" for before, after in together.renumber.items())
            yield issue_of("id_gap", name, detail=f"these numbers would close it: {moves}")
        elif strange:
            detail = f"class ids {strange} outside 0..{info.num_classes - 1} and ignore id {info.ignore_id}"
            fix = f"{KINDS['unknown_ids'].fix}{', ' + hint if hint else ''}"
            yield issue_of("unknown_ids", name, detail=detail, fix=fix)


def _with_proposal(issue: Issue, colours: set[str]) -> Issue:
    """Say to a colour mask that nothing can be done with yet which classes the colours of all would make."""
    if issue.kind != "colour_mask" or issue.detail:
        return issue
    try:
        classes = ", ".join(f"{one.id} {one.name} '{one.color}'" for one in propose_classes(colours))
        detail = f"classes after their colours: {classes}"
    except InputError as error:
        detail = str(error)
    return issue_of(issue.kind, *issue.files, detail=detail, fix=issue.fix, repairable=issue.repairable)


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ids)))


def _unused_classes(info: DatasetInfo, together: Together) -> Iterator[Issue]:
    last_used = max((c for c in range(info.num_classes) if c not in together.unused), default=-1)
    between = [c for c in together.unused if c < last_used]
    names = {c: f"class {c} '{info.class_names[c]}'" for c in together.unused}
    if between:
        what = "no mask has a pixel of it, though later ids are used"
        yield Issue("id_gap", "warning", tuple(names[c] for c in between), what, KINDS["unused_class"].fix)
    if together.lost:
        fix = "look at a mask; if so, add 1 to every id"
        yield Issue("shifted_ids", "warning", ("all masks",), together.lost, fix)
    if behind := [names[c] for c in together.unused if c not in between]:
        yield issue_of("unused_class", *behind)


class _ManifestRows:
    """Manifest rows on their way into Arrow: few at a time are Python objects."""

    def __init__(self, info: DatasetInfo) -> None:
        schema = manifest_schema(info)
        self.schema = schema.remove(schema.get_field_index("split"))
        self.batches: list[pyarrow.RecordBatch] = []
        self.waiting: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.waiting.append(row)
        if len(self.waiting) == _BATCH:
            self._flush()

    def table(self) -> pyarrow.Table:
        import pyarrow as pa

        self._flush()
        return pa.Table.from_batches(self.batches, schema=self.schema)

    def _flush(self) -> None:
        import pyarrow as pa

        if self.waiting:
            self.batches.append(pa.RecordBatch.from_pylist(self.waiting, schema=self.schema))
        self.waiting = []
