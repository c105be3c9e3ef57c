"""What can be wrong with a set: every kind by name, how grave it is, what to do, and how the manifest keeps it."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from segmill.errors import InputError, near_miss

Severity = Literal["error", "warning"]
ISSUES_KEY = b"segmill.faults"  # in the metadata of the manifest's schema


PRINTED = 50  # lines of an error's message


@dataclass(frozen=True)
class Issue:
    """What is wrong with one file, or with all files (or classes) of a set that have the same kind of issue.

    ``kind``: short name, as ``data.accept`` takes it; "" for a file of another layout that is read in. ``severity``: an
    error stops the pipeline, a warning does not. ``files``: all it was found in. ``what`` and ``fix``: what is wrong,
    what to do. ``repairable``: whether ``segmill validate --fix`` can repair it. ``detail``: the part of ``what`` that
    differs from file to file; it is not recorded.
    """

    kind: str
    severity: Severity
    files: tuple[str, ...]
    what: str
    fix: str
    repairable: bool = False
    detail: str = ""

    @property
    def file(self) -> str:
        """Return the only file, or the first."""
        return self.files[0]

    def __str__(self) -> str:
        if not self.kind:
            return f"{self.file}: {self.what}; {self.fix}"
        first = ", ".join(self.files[:3]) + (", ..." if len(self.files) > 3 else "")
        return f"{self.kind} ({len(self.files)}): {first}: {self.what}; {self.fix}"


class IssuesFound(InputError):
    """A set, or samples on their way into one, can't be used as they are. The message prints the first PRINTED lines.

    ``stopping``: the issues that must be fixed. ``issues``: these, and those that alone would not have stopped.
    """

    def __init__(self, raw_dir: Path, stopping: Sequence[Issue], issues: Sequence[Issue] | None = None) -> None:
        self.raw_dir = raw_dir
        self.stopping = list(stopping)
        self.issues = list(stopping if issues is None else issues)
        lines = [f"  {issue}" for issue in stopping[:PRINTED]]
        if len(stopping) > PRINTED:
            lines.append(f"  and {len(stopping) - PRINTED} more")
        count = sum(len(issue.files) for issue in stopping)
        problems = "1 problem" if count == 1 else f"{count} problems"
        super().__init__("\n".join([f"{problems} in {raw_dir}:", *lines]))

    def __reduce__(self) -> tuple[type[IssuesFound], tuple[Path, list[Issue], list[Issue]]]:
        return IssuesFound, (self.raw_dir, self.stopping, self.issues)


class Kind(NamedTuple):
    """What is the same of every issue of a kind."""

    severity: Severity
    what: str
    fix: str
    repairable: bool = False


# What --fix can do is in mask_faults.py. The kinds of leaks are found by leaks.py, which says more of each.
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
    "group_rule": Kind("error", "the group rule of dataset.yaml gives it no group", "rename it or correct the rule"),
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
    "id_gap": Kind("error", "ids are beyond a gap in those that are declared", "number the classes 0, 1, 2, ..."),
    "unknown_ids": Kind(
        "error", "it holds ids that are not declared", "correct the mask or add the classes to dataset.yaml"
    ),
    "jpeg_mask": Kind(
        "error", "it was compressed as JPEG, which blurs ids into others", "get the mask as it was before that"
    ),
    "soft_edges": Kind(
        "error",
        "values between two ids are along their border, as smoothing or resizing a mask makes them",
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
    "exact_duplicate": Kind("error", "the same image is in two samples", "keep one of them"),
    "near_duplicate": Kind("error", "nearly the same image is in two samples", "keep one, or make them one group"),
    "group_leak": Kind("error", "a group has samples in several splits", "keep it in one"),
}
UNACCEPTABLE = ("not_a_file", "link_outside")  # DVC would hang on them, or follow them


def issue_of(kind: str, *files: str, detail: str = "", fix: str | None = None, repairable: bool | None = None) -> Issue:
    """Return the issue of ``kind`` in ``files``, sorted; ``detail`` follows what is always said of that kind."""
    known = KINDS[kind]
    what = f"{known.what} ({detail})" if detail else known.what
    can_repair = known.repairable if repairable is None else repairable
    return Issue(kind, known.severity, tuple(sorted(files)), what, fix or known.fix, can_repair, detail)


def wrong_file(file: str, what: str, fix: str, kind: str = "") -> Issue:
    """Return the issue of one file in words of its own: an error."""
    return Issue(kind, "error", (file,), what, fix)


def gather(issues: Iterable[Issue]) -> list[Issue]:
    """Return one issue for all files of a kind that can be repaired, and one for those that can't."""
    alike: dict[tuple[str, bool], list[Issue]] = defaultdict(list)
    for issue in issues:
        alike[issue.kind, issue.repairable].append(issue)
    gathered = []
    for (kind, repairable), members in sorted(alike.items()):
        members.sort(key=lambda issue: issue.files)
        first = members[0]
        detail = first.detail
        if detail and any(issue.detail != detail for issue in members):
            detail = f"the first: {detail}"
        files = dict.fromkeys(file for issue in members for file in issue.files)
        gathered.append(issue_of(kind, *files, detail=detail, fix=first.fix, repairable=repairable))
    return gathered


def check_accepted(accept: Sequence[str]) -> None:
    """Raise InputError for a kind in ``data.accept`` that does not exist, or that nobody can live with."""
    for kind in accept:
        if kind in UNACCEPTABLE:
            raise InputError(f"data.accept names {kind}, but no data version can hold such a file", "remove it")
        if kind not in KINDS:
            hint = near_miss(kind, list(KINDS))
            known = ", ".join(KINDS)
            raise InputError(f"data.accept names the kind '{kind}', which does not exist{hint} (kinds: {known})")


def stopping(issues: Iterable[Issue], accept: Sequence[str]) -> list[Issue]:
    """Return the errors that are not accepted."""
    return [issue for issue in issues if issue.severity == "error" and issue.kind not in accept]


def issues_as_metadata(issues: Sequence[Issue]) -> dict[bytes, bytes]:
    """Return what the metadata of the manifest's schema holds besides the set's info."""
    return {ISSUES_KEY: json.dumps([_plain(issue) for issue in issues]).encode()}


def read_issues(manifest: Path) -> list[Issue]:
    """Return the issues that were found when ``manifest`` was written: warnings, and errors that were accepted."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(manifest).metadata or {}
    if ISSUES_KEY not in metadata:
        raise InputError(
            f"{manifest} keeps no issues", "it is no manifest of this version of segmill, so make it again"
        )
    return [Issue(**{**plain, "files": tuple(plain["files"])}) for plain in json.loads(metadata[ISSUES_KEY])]


def _plain(issue: Issue) -> dict[str, object]:
    plain = dataclasses.asdict(issue)
    del plain["detail"]
    return plain
