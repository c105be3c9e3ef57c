"""What the page of a checked set shows: its issues by kind, pairs of leaks, and how a file looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.schema.samples import list_samples
from segmill.data.storage.images import read_image, read_mask
from segmill.data.storage.raw_set import StoredFile
from segmill.data.validation.leaks import Pair
from segmill.errors import InputError
from segmill.reports.checks_page import ChecksPage, FoundIssue, IssueKind, Side, SidePair, write_checks_page
from segmill.reports.pictures import palette, sheet

# Files of these kinds are not opened again: there is nothing to see, or opening them is what went wrong.
_UNSEEN = ("unreadable", "crashes_decoder", "not_a_file", "link_outside", "wrong_file_type")


def write_issues_page(
    path: Path,
    raw_dir: Path,
    info: DatasetInfo,
    samples: int,
    issues: Sequence[Issue],
    pairs: Sequence[Pair],
    accept: Sequence[str],
) -> None:
    """Write the page of the set under ``raw_dir`` to ``path``, atomically.

    Args:
        path: one HTML file that loads nothing from anywhere.
        raw_dir, info, samples: the set, what dataset.yaml says, and how many samples it has.
        issues: all of them, accepted ones too. ``pairs``: what find_leaks found besides.
        accept: kinds that do not stop the pipeline.
    """
    wanted = {file for issue in issues for file in issue.files} | {file for pair in pairs for file in pair.files}
    entries = list_samples(raw_dir)[0] if wanted else []
    parts: dict[str, tuple[StoredFile, ...]] = {
        entry.image.name: (entry.image,) for entry in entries if entry.image.name in wanted
    }
    # A mask says little without its image: one that is empty is a black square.
    parts |= {entry.mask.name: (entry.image, entry.mask) for entry in entries if entry.mask.name in wanted}

    def picture(name: str) -> NDArray[np.uint8] | None:
        return side_by_side([pixels_to_look_at(raw_dir, part, info) for part in parts.get(name, ())])

    write_checks_page(ChecksPage(info.name, samples, issue_kinds(issues, pairs, accept), picture), path)


def issue_kinds(issues: Sequence[Issue], pairs: Sequence[Pair], accept: Sequence[str]) -> list[IssueKind]:
    """Return the issues by kind and severity, each with its pairs."""
    kinds: dict[tuple[str, str], list[Issue]] = {}
    for issue in issues:
        kinds.setdefault((issue.kind, issue.severity), []).append(issue)
    return [
        IssueKind(
            kind=kind,
            state="warning" if severity == "warning" else "accepted" if kind in accept else "stops",
            repairable=any(issue.repairable for issue in members),
            issues=[FoundIssue(issue.what, issue.fix, issue.files, kind not in _UNSEEN) for issue in members],
            pairs=[_pair(pair) for pair in pairs if (pair.kind, pair.severity) == (kind, severity)],
        )
        for (kind, severity), members in kinds.items()
    ]


def pixels_to_look_at(raw_dir: Path, part: StoredFile, info: DatasetInfo) -> NDArray[np.uint8] | None:
    """Return an image or mask of the set as RGB, classes in their colours; None where it can't be read."""
    try:
        content = part.read(raw_dir)
        if not part.name.startswith("masks/"):
            return read_image(content)
        mask_HW = read_mask(content)
    except (InputError, OSError):
        return None
    shown = np.full((256, 3), 128, np.uint8)
    shown[: info.num_classes] = palette(info.colors)
    return shown[mask_HW]


def side_by_side(pictures: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.uint8] | None:
    """Return HWC pictures, grey or RGB, as one, at their own sizes; None where there is none."""
    seen = [np.broadcast_to(picture, (*picture.shape[:2], 3)) for picture in pictures if picture is not None]
    return np.asarray(sheet([[Image.fromarray(picture) for picture in seen]])) if seen else None


def _pair(pair: Pair) -> SidePair:
    first, second = (Side(*one) for one in zip(pair.ids, pair.files, pair.groups, pair.splits, strict=True))
    return SidePair((first, second), pair.likeness, pair.mirrored)
