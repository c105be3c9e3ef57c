"""The page of the windows: where means, band and change are drawn; and what a browser makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import needs_chromium, page

from segmill.reports.windows_page import HEIGHT, WIDTH, Point, StatisticRow, plot
from tests.reports.pages import write_windows


def row(*means: float | None, since: int | None = None) -> StatisticRow:
    return StatisticRow(
        title="brightness", unit="0 to 1", usual=0.5, low=0.4, high=0.6, now=0.5, moved=since is not None, says="",
        since="", since_index=since, outside=None, p_value="1.0000",
        points=[Point(f"{hour}:00", mean, 1) for hour, mean in enumerate(means)],
    )  # fmt: skip


def test_windows_are_placed_by_time_and_mean() -> None:
    drawn = plot(row(0.4, 0.6, 0.9, since=2))
    step = WIDTH / 3
    assert [dot.x for dot in drawn.dots] == pytest.approx([step / 2, 3 * step / 2, 5 * step / 2], abs=0.01)
    assert drawn.dots[1].y == drawn.band_y and drawn.dots[0].y == pytest.approx(drawn.band_y + drawn.band_height)
    assert all(0 < dot.y < HEIGHT for dot in drawn.dots) and drawn.dots[2].y < drawn.dots[1].y < drawn.usual_y
    assert [dot.late for dot in drawn.dots] == [False, False, True] and drawn.since_x == round(2 * step, 2)
    assert drawn.dots[0].title == "0:00: 0.4, 1 image" and len(drawn.lines) == 1


def test_an_hour_without_images_is_a_gap() -> None:
    drawn = plot(row(0.4, 0.5, None, 0.5, 0.5, None, 0.4))
    assert [line.count(",") for line in drawn.lines] == [2, 2] and len(drawn.dots) == 5


def test_means_that_are_all_the_same_are_drawn() -> None:
    flat = StatisticRow(**{**vars(row(18.0, 18.0)), "usual": 18.0, "low": 18.0, "high": 18.0})
    drawn = plot(flat)
    assert {dot.y for dot in drawn.dots} == {HEIGHT / 2} and drawn.band_height == 1.0


@needs_chromium
def test_a_browser_shows_it_in_its_width_and_loads_nothing(tmp_path: Path) -> None:
    with page(500, 800) as opened:
        opened.open(write_windows("road <b>", tmp_path).as_uri())
        assert opened.value("[...document.querySelectorAll('h3')].map(one => one.innerText)") == [
            "area of road <b> far higher",
            "area of road <b>",
        ]
        assert opened.value("document.documentElement.scrollWidth <= innerWidth")
        band, since = (
            opened.value(
                f"(({{x, width}}) => [x, width])(document.querySelector('.series {what}').getBoundingClientRect())"
            )
            for what in (".band", ".since")
        )
        assert since[0] == pytest.approx(band[0] + band[1] * 3 / 4, abs=1)
        assert opened.value("performance.getEntriesByType('resource').length") == 0 and opened.complaints == []
