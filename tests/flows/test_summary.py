from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from flows.summary import SPACE, markdown, next_steps, run_scores, run_table, show_result, shown_interval
from segmill.metrics.intervals import Interval

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


def refused(decision: str, champion_iou: list[float | None]) -> dict[str, Any]:
    return {
        "scores": run_scores(METRICS, {"champion_miou": 0.8, "champion_iou": champion_iou}),
        "verdict": {"decision": decision, "reasons": ["It is no better."]},
        "outcome": "version 7 was not promoted",
        "data_version": "abc",
        "model": "segmill-street",
        "version": "7",
        "report": "reports/index.html",
        "git_commit": "0123",
        "compared_with": "6",
    }


def test_a_refusal_says_which_classes_lost_and_what_can_be_done() -> None:
    lines = next_steps(refused("FAIL", [0.8, 0.9]))
    assert lines[0] == "road lost 5.0 IoU points against the champion (0.8000 to 0.7500)"
    assert len(lines) == 3 and "segmill audit" in lines[1], "car is in no test image: nothing is said of it"
    assert lines[-1] == "to try it all the same: segmill predict IMAGE --version 7"
    (more, _) = next_steps(refused("INCONCLUSIVE", [0.7539, None]))
    assert "more test groups" in more, "less than half a point is no loss to speak of"
    assert next_steps(refused("PASS", [0.8, 0.9])) == []
    out = io.StringIO()
    show_result(refused("FAIL", [0.8, 0.9]), Console(file=out, width=80))
    assert "  > road lost 5.0 IoU points" in out.getvalue()
    assert ["champion", "0.8000", "-", "0.8000", "0.9000"] in [line.split() for line in out.getvalue().splitlines()]
    assert "What next:\n\n- road lost 5.0 IoU points" in markdown(refused("FAIL", [0.8, 0.9]))


def test_a_training_that_was_too_short_is_said_in_the_terminal_and_on_the_pages() -> None:
    result = refused("FAIL", [0.8, 0.9]) | {"warnings": ["member a ended after 3 of the 9 steps of its first epoch"]}
    out = io.StringIO()
    show_result(result, Console(file=out, width=80))
    assert "warning: member a ended after 3 of the 9 steps" in out.getvalue()
    assert "- Warning: member a ended after 3 of the 9 steps" in markdown(result)


def test_the_pages_show_the_same_table() -> None:
    text = markdown(
        {
            "scores": run_scores(METRICS, {}),
            "verdict": {"decision": "PASS", "reasons": ["It is better."]},
            "outcome": "version 2 is the champion now",
            "data_version": "abc",
            "model": "segmill-street",
            "version": "2",
            "git_commit": "0123",
            "compared_with": None,
            "interval": shown_interval(Interval(0.75, 0.7, 0.8, 5)),
        }
    )
    assert "**PASS**: version 2 is the champion now" in text and "- It is better." in text
    assert "| ensemble | 0.7500 | 0.8000 | 0.7500 | - |" in text
    assert "mIoU 0.7500, with 95% confidence between 0.7000 and 0.8000." in text
    assert "Data version `abc`, model `segmill-street` version 2, with no earlier champion, code commit `0123`." in text
    assert "version 7, compared with version 6, code" in markdown(refused("FAIL", [0.8, 0.9]))
    assert shown_interval(Interval(0.75, 0.0, 1.0, 2)).endswith("the test split has too few groups (2)")


def test_the_version_s_page_has_what_it_takes_to_decide() -> None:
    conditions = [
        {"name": "floor", "outcome": "met", "figures": {"miou": 0.75}},
        {"name": "class a|b", "outcome": "not met", "figures": {"gain": -0.06, "low": -0.09, "most_loss": 0.05}},
    ]
    facts = {
        "renewal": "A new test set begins with so many groups that this sentence is longer than any name shown.",
        "rule": "lifetime", "level": 0.001, "alpha_spent": 0.001, "judgements_left": 7, "set_number": 2, "groups": 9,
        "passes": 1, "changes_by_people": 1, "floor_miou": 0.5, "conditions": conditions,
    }  # fmt: skip
    text = markdown(refused("FAIL", [0.8, 0.9]) | {"facts": facts, "links": {"passport": "http://127.0.0.1/#/p"}})
    plain = text.replace(SPACE, "").splitlines()
    assert "| floor | met | mIoU of 50.0 % | 75.0 % |" in plain
    assert "| class a\\|b | not met | loses less than 5.0 points | -6.0 points, at worst -9.0 |" in plain
    assert "- judgements left: 6 (test set 2: 9 groups, 1 PASSes before)" in plain
    assert "- not covered: 1 change made by people, who could see the figures of test" in plain
    assert "[passport](http://127.0.0.1/#/p)" in plain
    assert f"- renewed by: {facts['renewal']}" in plain
    assert any(line.startswith("- to improve it:") and line.endswith("(\\`segmill audit\\`)") for line in plain)
    assert "`segmill verify segmill-street/7` recomputes what the passport says." in plain
