"""`segmill windows`: what the service was sent, by hour: what moved against training, since when, how sure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WorkspaceOption, open_workspace, out, say, tell
from segmill.errors import InputError, SegmillError
from segmill.names import visible

if TYPE_CHECKING:
    from segmill.monitoring.comparison import Movement
    from segmill.monitoring.usual import UsualImages
    from segmill.monitoring.windows import Window
    from segmill.params import Params
    from segmill.reports.windows_page import StatisticRow, WindowsPage
    from segmill.workspace import Workspace

DAY_S = 86_400


def windows_command(
    version: Annotated[str | None, typer.Option(help="Of the model; the one that answered last.")] = None,
    days: Annotated[float, typer.Option(help="How far back; the first windows count as reference besides.", min=0)] = 7,
    html: Annotated[Path | None, typer.Option(help="File for a page with every statistic over time.")] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Say what moved of the images that the service was sent."""
    from segmill.monitoring.comparison import LEVEL, compare
    from segmill.monitoring.windows import read_windows
    from segmill.promotion.ledger_url import ledger_url
    from segmill.reports.windows_page import write_windows_page
    from tasks.register import model_name

    space, params = open_workspace(workspace)
    model = model_name(space, params)
    every = read_windows(ledger_url(space.root, params.promotion.ledger_url), model)
    if not every:
        raise InputError(
            f"nothing was served by {model} that is in windows", "`segmill serve` keeps statistics of what it is sent"
        )
    version = version or every[-1].version
    own = [one for one in every if one.version == version]
    if not own:
        versions = ", ".join(dict.fromkeys(one.version for one in every))
        raise InputError(f"version {version} of {model} has no windows", f"those that have: {versions}")
    usual, windows = _reference(space, params, own)
    windows = [one for one in windows if one.start + one.length_s >= time.time() - days * DAY_S]
    movements = compare(windows, usual)
    page = _page(windows, usual, movements, LEVEL) if windows else None
    if page and html:
        write_windows_page(page, html)
    tell(
        model=model, version=version, windows=len(windows), images=sum(one.sums.images for one in windows),
        first=_time(windows[0].start) if windows else None, last=_time(windows[-1].start) if windows else None,
        compared_with=usual.source, reference_images=usual.sums.images, level=LEVEL,
        moved=[one.name for one in movements if one.moved],
        statistics=[one.as_json() | {"since": None if one.since is None else _time(one.since)} for one in movements],
        page=html if page else None,
    )  # fmt: skip
    if not page:
        say(f"version {version} of {model} was sent nothing in the last {days:g} days that could be compared")
        return
    _show(page, html)


def _reference(space: Workspace, params: Params, own: Sequence[Window]) -> tuple[UsualImages, Sequence[Window]]:
    """Return what windows are compared with, and those that are."""
    from flows.environment import tracking_uri
    from segmill.monitoring.comparison import reference_of
    from segmill.monitoring.usual import FILE, UsualImages
    from segmill.promotion.keys import trusted_keys
    from segmill.promotion.versions import verified_copy

    model, version = own[0].model, own[0].version
    try:
        with verified_copy(tracking_uri(space, params), model, version, trusted_keys(space.root)) as folder:
            if (folder / FILE).is_file():
                return UsualImages.read(folder / FILE), own
        why = "it was registered without statistics of its training images"
    except SegmillError as error:
        why = f"it can't be asked what it learned from: {error}"
    say(f"version {version} is compared with its own first windows: {why}")
    return reference_of(own)


def _page(windows: Sequence[Window], usual: UsualImages, movements: Sequence[Movement], level: float) -> WindowsPage:
    from segmill.monitoring.usual import TRAINING
    from segmill.reports.windows_page import WindowsPage

    starts = [one.start for one in windows]
    groups = "groups of its training images" if usual.source == TRAINING else "windows, its first ones"
    moved = [one for one in movements if one.moved]
    return WindowsPage(
        model=windows[0].model, version=windows[0].version, windows=len(windows),
        length=_length(windows[-1].length_s), images=sum(one.sums.images for one in windows),
        first=_time(starts[0]), last=_time(starts[-1]),
        compared_with=f"{usual.sums.images:,} images in {usual.groups} {groups}",
        verdict=_verdict(moved, len(movements), usual), level=level,
        rows=[_row(one, windows, starts) for one in movements],
    )  # fmt: skip


def _row(one: Movement, windows: Sequence[Window], starts: Sequence[int]) -> StatisticRow:
    from segmill.reports.windows_page import Point, StatisticRow

    return StatisticRow(
        title=one.scale.title, unit=one.scale.unit, usual=one.usual, low=one.usual_low, high=one.usual_high,
        now=one.now, moved=one.moved, says=one.words, since="" if one.since is None else _time(one.since),
        since_index=None if one.since is None else starts.index(one.since), outside=one.outside,
        p_value="below 0.0001" if one.p_value < 1e-4 else f"{one.p_value:.4f}",
        points=[
            Point(_time(window.start), mean, window.sums.images)
            for window, mean in zip(windows, one.means, strict=True)
        ],
    )  # fmt: skip


def _verdict(moved: Sequence[Movement], statistics: int, usual: UsualImages) -> str:
    from segmill.monitoring.usual import TRAINING

    against = "the training images" if usual.source == TRAINING else "the first windows"
    if not moved:
        return f"Nothing moved against {against}"
    since = _time(min(one.since for one in moved if one.since is not None))
    return f"{len(moved)} of {statistics} statistics moved against {against}, the first since {since}"


def _show(page: WindowsPage, html: Path | None) -> None:
    say(
        f"{page.model}, version {page.version}: {page.images} images in {page.windows} windows of {page.length}, "
        f"{page.first} to {page.last}, compared with {page.compared_with}"
    )
    say(f"{page.verdict}.")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("statistic", "usual", "95 % of the images", "now", "what moved", "since", "p-value"):
        table.add_column(title, overflow="fold")
    for row in page.rows:
        cells = (
            row.title, f"{row.usual:.3g}", f"{row.low:.3g} to {row.high:.3g}", f"{row.now:.3g}", row.says or "-",
            row.since or "-", row.p_value,
        )  # fmt: skip
        table.add_row(*(Text(visible(cell)) for cell in cells), style="bold" if row.moved else "")
    out.print(table)
    if html:
        say(str(html))


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _length(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h" if not rest else f"{seconds // 60} min" if not seconds % 60 else f"{seconds} s"
