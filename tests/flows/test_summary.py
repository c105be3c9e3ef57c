from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from flows.summary import markdown, run_scores, run_table

METRICS: dict[str, Any] = {
    "classes": ["road", "car"],
    "members": {"a": {"miou": 0.5, "mdice": 0.6, "iou": {"road": 0.75, "car": 0.25}}},
    "ensemble": {"miou": 0.75, "mdice": 0.8, "iou": {"road": 0.75, "car": None}},
}


def printed(width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(run_table(run_scores(METRICS, {"champion_miou": 0.7}), width))
    return [line.split() for line in out.getvalue().splitlines()]  # type: ignore[misc]


def test_a_wide_terminal_shows_every_class() -> None:
    assert printed(100) == [
        ["on", "test", "mIoU", "mDice", "road", "car"],
        ["a", "0.5000", "0.6000", "0.7500", "0.2500"],
        ["ensemble", "0.7500", "0.8000", "0.7500", "-"],
        ["champion", "0.7000", "-", "-", "-"],
    ]


def test_a_narrow_one_shows_the_worst() -> None:
    assert printed(36)[1:] == [
        ["a", "0.5000", "0.6000", "0.2500", "car"],
        ["ensemble", "0.7500", "0.8000", "0.7500", "road"],
        ["champion", "0.7000", "-", "-"],
    ]


def test_the_pages_show_the_same_table() -> None:
    text = markdown(
        {
            "scores": run_scores(METRICS, {}),
            "verdict": {"decision": "PASS", "reasons": ["It is better."]},
            "outcome": "version 2 is the champion now",
            "data_version": "abc",
            "model": "segmill-street",
            "version": "2",
        }
    )
    assert "**PASS**: version 2 is the champion now" in text and "- It is better." in text
    assert "| ensemble | 0.7500 | 0.8000 | 0.7500 | - |" in text
