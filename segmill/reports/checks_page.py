"""The page of what is wrong with a set: each kind of issue, its first files, and leaks side by side. Self-contained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from segmill.reports.page import write_page
from segmill.reports.pictures import Pixels, as_uri, thumbnail

SHOWN_FILES = 6  # pictures of one issue
SHOWN_ISSUES = 20  # issues of one kind
SHOWN_PAIRS = 24  # pairs of one kind
LISTED_FILES = 500  # names of one issue
PICTURE_PX = 200
QUALITY = 75
STATES = {"stops": "stops the pipeline", "warning": "warning", "accepted": "accepted"}

Picture = Callable[[str], Pixels | None]


class FoundIssue(NamedTuple):
    """An issue: what is wrong, what to do, and every file it was found in. ``pictured``: whether these can be drawn."""

    what: str
    fix: str
    files: Sequence[str]
    pictured: bool


class Side(NamedTuple):
    """One sample of a pair, and the file that shows it."""

    id: str
    file: str
    group: str
    split: str


class SidePair(NamedTuple):
    """Two samples that are too alike. ``likeness``: 1 is the same picture, None where pixels were not compared."""

    sides: tuple[Side, Side]
    likeness: float | None
    mirrored: bool


class IssueKind(NamedTuple):
    """All issues of one kind and state. ``repairable``: whether ``segmill validate --fix`` repairs it."""

    kind: str
    state: Literal["stops", "warning", "accepted"]
    repairable: bool
    issues: Sequence[FoundIssue]
    pairs: Sequence[SidePair]

    @property
    def files(self) -> int:
        return sum(len(issue.files) for issue in self.issues)


@dataclass(frozen=True)
class ChecksPage:
    """All that the page shows.

    Attributes:
        name: of the set. ``samples``: how many it has.
        kinds: in any order.
        picture: gives the pixels of a file by its name, HWC RGB or HW uint8, or None where it can't be shown; called
            for at most SHOWN_FILES files of an issue and SHOWN_PAIRS pairs of a kind.
    """

    name: str
    samples: int
    kinds: Sequence[IssueKind]
    picture: Picture


def write_checks_page(page: ChecksPage, path: Path) -> None:
    """Write the page to ``path``, atomically: kinds that stop the pipeline first, then by the number of files."""
    kinds = sorted(page.kinds, key=lambda kind: (list(STATES).index(kind.state), -kind.files, kind.kind))
    states = {state: sorted({kind.kind for kind in kinds if kind.state == state}) for state in STATES}
    write_page(
        path,
        "checks.html.jinja",
        name=page.name,
        samples=page.samples,
        badges=STATES,
        states=states,
        kinds=(_shown_kind(kind, page.picture) for kind in kinds),
        any_kind=bool(kinds),
        shown_pairs=SHOWN_PAIRS,
        listed_files=LISTED_FILES,
    )


def _shown_kind(kind: IssueKind, picture: Picture) -> dict[str, Any]:
    return {
        "facts": kind,
        "issues": [_shown_fault(issue, picture, pictured=not kind.pairs) for issue in kind.issues[:SHOWN_ISSUES]],
        "more_issues": max(len(kind.issues) - SHOWN_ISSUES, 0),
        "pairs": [_shown_pair(pair, picture) for pair in kind.pairs[:SHOWN_PAIRS]],
        "more_pairs": max(len(kind.pairs) - SHOWN_PAIRS, 0),
    }


def _shown_fault(issue: FoundIssue, picture: Picture, *, pictured: bool) -> dict[str, Any]:
    drawn = issue.files[:SHOWN_FILES] if pictured and issue.pictured else ()
    return {
        "what": issue.what,
        "fix": issue.fix,
        "files": issue.files[:LISTED_FILES],
        "more_files": max(len(issue.files) - LISTED_FILES, 0),
        "pictures": list(_pictures(drawn, picture)),
    }


def _pictures(files: Iterable[str], picture: Picture) -> Iterator[dict[str, str]]:
    for file in files:
        uri = _uri(picture(file))
        if uri:
            yield {"file": file, "uri": uri}


def _shown_pair(pair: SidePair, picture: Picture) -> dict[str, Any]:
    sides = [{"facts": side, "uri": _uri(picture(side.file))} for side in pair.sides]
    return {"sides": sides, "likeness": pair.likeness, "mirrored": pair.mirrored}


def _uri(pixels: Pixels | None) -> str:
    """Return the pixels as a small JPEG inside a URI, or "" for None."""
    return "" if pixels is None else as_uri(thumbnail(pixels, PICTURE_PX), QUALITY)
