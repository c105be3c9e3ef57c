"""What can be wrong with a set: every kind by name, how grave it is, what to do, and how the manifest keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from segmill.errors import InputError, near_miss

Severity = Literal["error", "warning"]
FAULTS_KEY = b"segmill.faults"  # in the metadata of the manifest's schema


@dataclass(frozen=True)
class Fault:
    """One kind of fault in a set.

    ``kind``: short name, as ``data.accept`` takes it. ``severity``: an error stops the pipeline, a warning does not.
    ``files``: every file (or class) it was found in. ``what`` and ``fix``: what is wrong, what to do. ``repairable``:
    whether ``segmill validate --fix`` can mend it.
    """

    kind: str
    severity: Severity
    files: tuple[str, ...]
    what: str
    fix: str
    repairable: bool = False

    def __str__(self) -> str:
        first = ", ".join(self.files[:3]) + (", ..." if len(self.files) > 3 else "")
        return f"{self.kind} ({len(self.files)}): {first}: {self.what}; {self.fix}"


class Kind(NamedTuple):
    """What is the same of every fault of a kind."""

    severity: Severity
    what: str
    fix: str
    repairable: bool = False


# What --fix can do is in doctor.py. The kinds of leaks are found by leaks.py, which says more of each.
KINDS: Mapping[str, Kind] = {
    "unreadable": Kind("error", "it can't be read as pixels", "replace or remove it"),
    "crashes_decoder": Kind("error", "decoding it crashes the process that tries", "replace or remove it"),
    "not_a_file": Kind(
        "error", "it is a folder, pipe, device or broken link named as an image", "put the file there or remove it"
    ),
    "link_outside": Kind("error", "it leads out of the set, so no version would hold it", "copy the file itself here"),
    "wrong_file_type": Kind("error", "its file type can't be used", "convert or remove it"),
    "same_stem": Kind("error", "another file has the same name but for its suffix", "rename or remove one"),
    "missing_mask": Kind("error", "it has no mask", "add the mask or remove the image"),
    "missing_image": Kind("error", "this mask has no image", "add the image or remove the mask"),
    "group_rule": Kind("error", "the group rule of dataset.yaml gives it no group", "rename it or mend the rule"),
    "colour_mask": Kind(
        "error",
        "its classes are colours, not ids",
        "give the classes of dataset.yaml these very colours, then --fix turns them into ids",
    ),
    "mask_format": Kind(
        "error", "its ids are stored in three equal channels, or not in 8 bits", "store one channel of 8 bits", True
    ),
    "binary_0_255": Kind("error", "it marks the thing with 255, which is no class", "store 0 and 1 instead", True),
    "shifted_ids": Kind("error", "all masks store each id with the same offset", "take the offset off", True),
    "id_gap": Kind("error", "ids lie beyond a gap in those that are declared", "number the classes 0, 1, 2, ..."),
    "unknown_ids": Kind(
        "error", "it holds ids that are not declared", "correct the mask or add the classes to dataset.yaml"
    ),
    "jpeg_mask": Kind(
        "error", "it was compressed as JPEG, which blurs ids into others", "get the mask as it was before that"
    ),
    "soft_edges": Kind(
        "error",
        "values between two ids lie along their border, as smoothing or resizing a mask makes them",
        "resize masks with nearest neighbour",
        True,
    ),
    "exif_rotated": Kind(
        "error", "the image turns by its EXIF orientation, the mask was drawn before it did", "turn the mask", True
    ),
    "exif_unclear": Kind(
        "warning",
        "the image turns by its EXIF orientation, and the mask fits both ways",
        "look whether they match; write the image without EXIF orientation to be sure",
    ),
    "off_by_a_pixel": Kind("error", "the mask is a pixel or two off the image's size", "make them one size", True),
    "size_mismatch": Kind("error", "the mask has another size than the image", "make them the same size"),
    "empty_mask": Kind(
        "warning", "the mask is all class 0, though the image shows something", "check that nothing was missed"
    ),
    "ignored_mask": Kind("warning", "every pixel of the mask is ignored", "remove the sample or label it"),
    "flat_image": Kind("warning", "the image is all one colour, its mask is not", "replace or remove the sample"),
    "unused_class": Kind("warning", "no mask has a pixel of it", "remove it from dataset.yaml or label some"),
    "class_in_one_split": Kind(
        "warning", "it appears in one split only", "spread the groups that show it, under splits in dataset.yaml"
    ),
    "class_missing_in_split": Kind(
        "warning", "it has no pixel in one split", "spread the groups that show it, under splits in dataset.yaml"
    ),
    "exact_duplicate": Kind("error", "the same image stands in two samples", "keep one of them"),
    "near_duplicate": Kind("error", "nearly the same image stands in two samples", "keep one, or make them one group"),
    "group_leak": Kind("error", "a group has samples in several splits", "keep it in one"),
}
UNACCEPTABLE = ("not_a_file", "link_outside")  # DVC would hang on them, or follow them


def fault(kind: str, files: Iterable[str], detail: str = "", *, fix: str | None = None, **changes: object) -> Fault:
    """Return the fault of ``kind`` in ``files``, sorted; ``detail`` follows what is always said of that kind."""
    known = KINDS[kind]
    what = f"{known.what} ({detail})" if detail else known.what
    made = Fault(kind, known.severity, tuple(sorted(files)), what, fix or known.fix, known.repairable)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def check_accepted(accept: Sequence[str]) -> None:
    """Raise InputError for a kind in ``data.accept`` that does not exist, or that nobody can live with."""
    for kind in accept:
        if kind in UNACCEPTABLE:
            raise InputError(f"data.accept names {kind}, but no data version can hold such a file; remove it")
        if kind not in KINDS:
            hint = near_miss(kind, list(KINDS))
            known = ", ".join(KINDS)
            raise InputError(f"data.accept names the kind '{kind}', which does not exist{hint} (kinds: {known})")


def stopping(faults: Iterable[Fault], accept: Sequence[str]) -> list[Fault]:
    """Return the errors that are not accepted."""
    return [fault for fault in faults if fault.severity == "error" and fault.kind not in accept]


def faults_as_metadata(faults: Sequence[Fault]) -> dict[bytes, bytes]:
    """Return what the metadata of the manifest's schema holds besides the set's info."""
    return {FAULTS_KEY: json.dumps([dataclasses.asdict(fault) for fault in faults]).encode()}


def read_faults(manifest: Path) -> list[Fault]:
    """Return the faults that were found when ``manifest`` was written: warnings, and errors that were accepted."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(manifest).metadata or {}
    if FAULTS_KEY not in metadata:
        raise InputError(f"{manifest} keeps no faults; it is no manifest of this version of segmill, so make it again")
    return [Fault(**{**plain, "files": tuple(plain["files"])}) for plain in json.loads(metadata[FAULTS_KEY])]
