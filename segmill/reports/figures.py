"""Plots in the style of the pages, drawn once for each theme, as pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, "Color Universal Design", 2008, without the yellow that is invisible on white.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#8a94a3"
LABEL_LENGTH = 28
THEMES = {"light": ("#1d2430", "#d8dde6"), "dark": ("#e7ebf2", "#3a4352")}  # text and grid


class Figure(NamedTuple):
    """A plot as data URIs, for light and for dark pages."""

    title: str
    light: str
    dark: str


def draw(title: str, plot: Callable[[Axes], None]) -> Figure:
    """Let ``plot`` draw on axes, once for each theme.

    Labels are text, never mathematics: a name may hold a dollar sign.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    uris = {}
    for theme, (ink, grid) in THEMES.items():
        with rc_context({"text.parse_math": False}):
            canvas = Canvas(figsize=(5.2, 3.1), layout="constrained")
            FigureCanvasAgg(canvas)
            axes = canvas.add_subplot(facecolor="none")
            plot(axes)
            axes.tick_params(which="both", colors=ink, length=0)
            axes.xaxis.label.set_color(ink)
            axes.yaxis.label.set_color(ink)
            axes.grid(color=grid, lw=0.7)
            axes.spines[:].set_visible(False)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, labelcolor=ink, fontsize=8.5)
            content = BytesIO()
            canvas.savefig(content, dpi=160, transparent=True)
        uris[theme] = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Figure(title, **uris)


def short(name: str) -> str:
    """Return a name in one line of at most LABEL_LENGTH characters: a longer label would leave no room for the plot."""
    line = " ".join(name.split())
    return line if len(line) <= LABEL_LENGTH else f"{line[: LABEL_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def whole_numbers(axes: Axes, label: str) -> None:
    """Label the x axis and mark it at whole numbers only, such as epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(label)
