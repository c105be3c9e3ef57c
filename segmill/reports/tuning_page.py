"""The page of a tuning: the verdict, the trials' curves, which key matters, and a plot for each searched key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from segmill.reports import figures
from segmill.reports.figures import GREY, LINES
from segmill.reports.page import write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"full": (LINES[5], 1.4, "-"), "stopped": (LINES[1], 0.9, "--")}


class TrialRow(NamedTuple):
    """One trial, as the page lists and draws it.

    ``searched``: whether it is part of the search; the others repeat the winner or the current settings with another
    seed. ``texts``: one per searched key, None for the current one. ``points``: (epoch, val mIoU).
    """

    number: int
    state: str
    share: float
    best: float | None
    seed: int
    searched: bool
    why: str
    texts: Sequence[str | None]
    points: Sequence[tuple[int, float]]


class SearchedKey(NamedTuple):
    """A searched key, as text and as an axis.

    ``names``: of choices, at 0, 1, ...; empty for a range from ``low`` to ``high``. ``points``: (place on the axis,
    best val mIoU, whether it trained to the end). ``current_at``: None where it is not on the axis.
    """

    key: str
    searched: str
    current: str
    winner: str
    names: Sequence[str]
    low: float
    high: float
    log: bool
    points: Sequence[tuple[float, float, bool]]
    current_at: float | None
    winner_at: float


@dataclass(frozen=True)
class TuningPage:
    """All that the page shows.

    Attributes:
        member: that was tuned; ``epochs`` of each trial, None for the member's own; ``seed`` of the search.
        states: of the search's trials to how many there are. ``seconds``: that the search took.
        verdict: a sentence without a full stop. ``assignments``: what ``--set`` takes to apply it; [] for nothing.
        trials: all, in the order they began. ``winner``: the number of the best one of the search.
        keys: that were searched. ``importances``: key to its share, largest first, judged at ``judged_at`` (0..1) of
            the training; {} where there are too few trials.
        winner_mious, current_mious: val mIoU by fresh seed.
    """

    member: str
    epochs: int | None
    seed: int
    states: Mapping[str, int]
    seconds: float
    verdict: str
    assignments: Sequence[str]
    trials: Sequence[TrialRow]
    winner: int
    keys: Sequence[SearchedKey]
    importances: Mapping[str, float]
    judged_at: float
    winner_mious: Sequence[float]
    current_mious: Sequence[float]


def write_tuning_page(page: TuningPage, out_dir: Path) -> None:
    """Write index.html into ``out_dir``."""
    plots = [("Best val mIoU so far, %", plot_best), ("Learning curves, val mIoU, %", plot_curves)]
    if page.winner_mious and page.current_mious:
        plots.append(("Winner and current settings, by seed", plot_seeds))
    drawn = [figures.draw(title, partial(plot, page=page)) for title, plot in plots]
    best = page.trials[page.winner - 1].best or 0.0
    slices = [figures.draw(key.key, partial(plot_key, key=key, best=best)) for key in page.keys]
    write_page(out_dir / "index.html", "tuning.html.jinja", page=page, drawn=drawn, slices=slices)


def plot_best(axes: Axes, page: TuningPage) -> None:
    """Draw the best val mIoU over the trials in the order they began, and each trial's own."""
    searched = [trial for trial in page.trials if trial.searched]
    points = [(number, 100 * trial.best) for number, trial in enumerate(searched, 1) if trial.best is not None]
    so_far = [(number, max(value for _, value in points[: place + 1])) for place, (number, _) in enumerate(points)]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=LINES[5], ms=5, label="a trial")
        axes.step(*zip(*so_far, strict=True), where="post", color=LINES[0], lw=2, label="best so far")
    figures.whole_numbers(axes, "trial")


def plot_curves(axes: Axes, page: TuningPage) -> None:
    """Draw val mIoU by epoch of every trial: stopped ones thin, the winner on top."""
    labelled: set[str] = set()
    searched = [trial for trial in page.trials if trial.searched]
    for trial in sorted(searched, key=lambda one: one.number == page.winner):
        if not trial.points:
            continue
        color, width, style = STYLES.get(trial.state, (GREY, 0.9, ":"))
        name = "interrupted" if trial.state == "open" else trial.state
        if trial.number == page.winner:
            color, width, name = LINES[0], 2.4, "winner"
        label = name if name not in labelled else None
        labelled.add(name)
        points = [(epoch, 100 * miou) for epoch, miou in trial.points]
        axes.plot(*zip(*points, strict=True), style, color=color, lw=width, label=label,
                  marker="o" if len(points) == 1 else None, ms=3)  # fmt: skip
    figures.whole_numbers(axes, "epoch")


def plot_key(axes: Axes, key: SearchedKey, best: float) -> None:
    """Draw every trial's val mIoU over its value of one key: complete trainings filled, stopped ones hollow."""
    for complete, color in ((False, LINES[1]), (True, LINES[5])):
        some = [(place, 100 * miou) for place, miou, full in key.points if full is complete]
        name = "complete" if complete else "stopped or interrupted"
        axes.plot(
            [place for place, _ in some], [miou for _, miou in some], "o",
            color=color, ms=6, mfc=color if complete else "none", label=name if some else None,
        )  # fmt: skip
    axes.plot(key.winner_at, 100 * best, "*", color=LINES[0], ms=14, label="winner")
    if key.names:
        axes.set_xticks(range(len(key.names)), [figures.short(name) for name in key.names], fontsize=8)
        axes.set_xlim(-0.5, len(key.names) - 0.5)
    elif key.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        room = (key.high / key.low) ** 0.04
        axes.set_xlim(key.low / room, key.high * room)
    else:
        room = 0.04 * (key.high - key.low)
        axes.set_xlim(key.low - room, key.high + room)
    if key.current_at is not None:
        axes.axvline(key.current_at, color=GREY, lw=1, ls=":", label="current value")
    axes.set_xlabel(key.key)
    axes.set_ylabel("val mIoU, %")


def plot_seeds(axes: Axes, page: TuningPage) -> None:
    """Draw a dot per seed for the winner and for the current settings, with their means."""
    rows: tuple[tuple[str, Sequence[float], Any], ...] = (
        ("current", page.current_mious, LINES[1]),
        ("winner", page.winner_mious, LINES[0]),
    )
    for place, (_, mious, color) in enumerate(rows):
        axes.plot([100 * miou for miou in mious], [place] * len(mious), "o", color=color, ms=7)
        axes.plot(100 * sum(mious) / len(mious), place, "|", color=color, ms=24, mew=2.5)
    axes.set_yticks((0, 1), [name for name, _, _ in rows])
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("val mIoU, %; a dot per seed, a line at the mean")
