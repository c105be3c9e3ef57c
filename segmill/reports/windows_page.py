"""The page of the windows: what moved against training, since when and how sure, and each statistic over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from segmill.reports.page import write_page

WIDTH, HEIGHT = 320.0, 96.0  # of a plot, in its own units
MARGIN = 0.08  # of the height, above and below


class Point(NamedTuple):
    """A window: when it began, the mean of its images (None where it has none), and how many there were."""

    time: str
    mean: float | None
    images: int


@dataclass(frozen=True, kw_only=True)
class StatisticRow:
    """One statistic, as the page lists and draws it.

    Attributes:
        title, unit: what it is.
        usual, low, high: mean and middle 95 % of the reference; ``now``: the mean since the change.
        moved: whether it did. ``says``: what happened, "" where nothing did. ``since``: when, "" likewise.
        since_index: number of the first window of the change, None likewise.
        outside: share of images outside the middle 95 %, None where that is not known.
        p_value: as text.
        points: one per window.
    """

    title: str
    unit: str
    usual: float
    low: float
    high: float
    now: float
    moved: bool
    says: str
    since: str
    since_index: int | None
    outside: float | None
    p_value: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class WindowsPage:
    """All that the page shows.

    Attributes:
        model, version: that answered. ``windows`` of ``length`` (in words) with ``images`` in all, from ``first`` to
            ``last`` (times in words).
        compared_with: what the reference is, as in "compared with ...".
        verdict: a sentence without a full stop.
        level: probability that something is named where nothing moved.
        rows: what moved first.
    """

    model: str
    version: str
    windows: int
    length: str
    images: int
    first: str
    last: str
    compared_with: str
    verdict: str
    level: float
    rows: Sequence[StatisticRow]


class Dot(NamedTuple):
    """A window's mean in a plot."""

    x: float
    y: float
    title: str
    late: bool


class Plot(NamedTuple):
    """A plot in units of ``WIDTH`` x ``HEIGHT``: the line's pieces, the band of the reference, the change."""

    lines: Sequence[str]
    dots: Sequence[Dot]
    band_y: float
    band_height: float
    usual_y: float
    since_x: float | None
    top: str
    bottom: str


def write_windows_page(page: WindowsPage, path: Path) -> None:
    """Write the page to ``path``, one file."""
    plots = [plot(row) for row in page.rows]
    write_page(path, "windows.html.jinja", page=page, plots=plots, width=WIDTH, height=HEIGHT, figure=figure)


def figure(value: float) -> str:
    """Write a figure with as many digits as help."""
    return f"{value:.3g}"


def plot(row: StatisticRow) -> Plot:
    """Place a row's windows in its plot."""
    means = [point.mean for point in row.points if point.mean is not None]
    low, high = min([row.low, *means]), max([row.high, *means])
    room = (high - low) * MARGIN or abs(high) * MARGIN or MARGIN
    low, high = low - room, high + room
    step = WIDTH / max(len(row.points), 1)

    def place(mean: float) -> float:
        return round(HEIGHT * (high - mean) / (high - low), 2)

    dots: list[Dot] = []
    pieces: list[list[str]] = []
    open_piece: list[str] = []
    for number, point in enumerate(row.points):
        if point.mean is None:
            pieces.append(open_piece)
            open_piece = []
            continue
        x, y = round(step * (number + 0.5), 2), place(point.mean)
        late = row.since_index is not None and number >= row.since_index
        what = f"{point.time}: {figure(point.mean)}, {point.images} image{'' if point.images == 1 else 's'}"
        dots.append(Dot(x, y, what, late))
        open_piece.append(f"{x},{y}")
    return Plot(
        lines=[" ".join(piece) for piece in [*pieces, open_piece] if len(piece) > 1],
        dots=dots,
        band_y=place(row.high),
        band_height=round(max(place(row.low) - place(row.high), 1.0), 2),
        usual_y=place(row.usual),
        since_x=None if row.since_index is None else round(step * row.since_index, 2),
        top=figure(high),
        bottom=figure(low),
    )
