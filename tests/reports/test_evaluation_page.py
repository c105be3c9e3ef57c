"""What the page says of a first run, of each verdict, of a run that changed nothing, of one member and of one epoch."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from segmill.reports.evaluation_page import (
    Curve,
    EvaluationPage,
    plot_curve,
    write_evaluation_page,
)
from segmill.reports.page import _environment
from segmill.reports.run_facts import Changes
from tests.reports.pages import FACTS, evaluation_page, run_facts


def said(page: EvaluationPage, folder: Path) -> str:
    """Return the page's text in one line, without its tags and style."""
    write_evaluation_page(page, folder)
    body = re.sub(r"<style>.*?</style>", " ", (folder / "index.html").read_text(), flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_a_pass_says_the_gain_what_changed_when_and_from_what(tmp_path: Path) -> None:
    changes = Changes(data=["version 11111111 -> 22222222", "rain: 12 added"], settings=["train.lr 0.1 -> 0.2"])
    own: dict[str, Any] = {"data_version": "2" * 32, "commit": "c" * 40, "changes": changes, "next_steps": []}
    text = said(evaluation_page(run=run_facts(**own)), tmp_path)
    assert "net 2026-11-29 04:50 UTC , the run took 2 min 05 s data version 22222222 commit cccccccc" in text
    assert (
        "PASS version 2 of net is the champion now version 2 mIoU 50.0 % former champion (version 1) mIoU 45.0 %"
        in text
    )
    assert "gain +5.0 points; 95 % interval +1.0 to +9.0, 3 groups" in text and "What next" not in text
    assert (
        "What changed since the former champion (version 1) data version 11111111 -> 22222222 rain: 12 added "
        "settings train.lr 0.1 -> 0.2 code the same"
    ) in text
    assert "ground 90.0 80.0 80.0 70.0 +10.0" in text, "IoU by class: own, the member's, the champion's, the gain"
    assert "image target former champion (version 1): mIoU 40.0 % version 2: mIoU 60.0 %" in text


@pytest.mark.parametrize(("decision", "state"), [("FAIL", "stops"), ("INCONCLUSIVE", "warning"), ("PASS", "pass")])
def test_each_verdict_has_its_colour_and_a_refusal_says_what_next(decision: str, state: str, tmp_path: Path) -> None:
    own = {"decision": decision, "outcome": "version 2 of net was not promoted; version 1 stays the champion"}
    run = run_facts(**own, next_steps=["more groups"], rival_serves=decision != "PASS")
    text = said(evaluation_page(run=run), tmp_path)
    assert ("the former champion (version 1)" in text) == (decision == "PASS")
    assert f"{decision} version 2 of net was not promoted; version 1 stays the champion" in text
    assert "Warning: member net ended early What next more groups" in text
    assert f'<section class="kind {state}">' in (tmp_path / "index.html").read_text()


def test_the_first_version_is_compared_with_none(tmp_path: Path) -> None:
    facts = {key: FACTS[key] for key in ("challenger_miou", "floor_miou", "samples")}
    run = run_facts(rival=None, rival_serves=False, facts=facts, changes=None, next_steps=[])
    text = said(evaluation_page(run=run, contrasts=None), tmp_path)
    assert "What changed There is no earlier champion to compare with." in text
    assert "(version" not in text and "gain, points" not in text and "differ most" not in text


def test_a_run_that_changed_nothing_says_so(tmp_path: Path) -> None:
    run = run_facts(changes=Changes())
    text = said(evaluation_page(run=run, contrasts=[]), tmp_path)
    assert "What changed since the former champion (version 1) Nothing: data, settings and code are the same." in text
    assert "Nowhere: both predict the same class for every labelled pixel of the test split." in text
    unknown = said(evaluation_page(run=run_facts(changes=Changes(unknown="its dvc.lock is lost"))), tmp_path)
    assert "This can't be said: its dvc.lock is lost." in unknown


def test_an_ensemble_of_one_is_not_compared_with_its_member(tmp_path: Path) -> None:
    text = said(evaluation_page(gain=None), tmp_path)
    assert "gain over" not in text and "best member" not in text and "ensemble mIoU" not in text
    assert "mIoU, % 50.0 95 % interval 40.0 to 60.0" in text and "IoU, % pixels, % model" in text
    both = said(evaluation_page("net", "other"), tmp_path)
    assert "gain over net , points +1.0 95 % interval -1.0 to +3.0" in both and "best member 50.0" in both


def test_a_member_of_an_earlier_run_has_no_time_of_training(tmp_path: Path) -> None:
    run = run_facts(trained={"net": None, "other": 61.0}, member_links=dict.fromkeys(("net", "other"), "#"))
    text = said(evaluation_page("net", "other", run=run), tmp_path)
    assert "net 1.00 of an earlier run" in text and "other 1.00 1 min 01 s" in text


def test_one_epoch_is_a_point_with_its_value() -> None:
    axes = Figure().add_subplot()
    plot_curve(axes, Curve("loss", {"a": [(1, 0.51234)], "b": [(1, 2.0), (2, 1.0)]}))
    assert [line.get_label() for line in axes.lines] == ["a: 0.5123", "b"]
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]
    assert np.ptp(axes.get_ylim()) > 0 and axes.get_xlabel() == "epoch"


def test_durations_and_points() -> None:
    filters = _environment().filters
    assert [filters["duration"](seconds) for seconds in (45, 185, 7800)] == ["45 s", "3 min 05 s", "2 h 10 min"]
    assert [filters["points"](one) for one in (None, -0.0001, 0.021)] == ["-", "+0.0", "+2.1"]


GATE = {
    "rule": "lifetime", "level": 0.0005, "alpha_spent": 0.0005, "judgements_left": 20, "set_number": 1,
    "passes": 0, "changes_by_people": 2, "goal": "superiority",
    "conditions": [
        {"name": "floor", "outcome": "met", "figures": {"miou": 0.5}},
        {"name": "gain", "outcome": "not met", "figures": {"p_value": 0.02, "p_value_at_least": False}},
        {"name": "class ground", "outcome": "met",
         "figures": {"gain": 0.1, "low": -0.012, "high": 0.2, "most_loss": 0.05, "groups": 3}},
        {"name": "class net", "outcome": "cannot be tested",
         "figures": {"gain": -0.01, "low": None, "high": None, "most_loss": 0.05, "groups": 1}},
        {"name": "latency", "outcome": "met", "figures": {"ratio": 1.02, "high": 1.05, "most": 1.1}},
    ],
}  # fmt: skip


def test_the_gate_s_conditions_budget_and_open_points_are_on_the_page(tmp_path: Path) -> None:
    later = {"gain": 0.012, "gain_low": 0.002, "gain_high": 0.022, "groups": 6}
    known = {
        "renewal": "A new test set begins with 13 groups.",
        "expires": "2026-12-06T08:30:00+00:00",
        "since_promotion": later,
    }
    text = said(evaluation_page(run=run_facts(facts={**FACTS, **GATE, **known})), tmp_path)
    assert "level 0.0005, one-sided; alpha spent: 0.0005 judgements left 19 (test set 1: 3 groups," in text
    assert "renewed by A new test set begins with 13 groups." in text and "until 2026-12-06 08:30 UTC" in text
    assert (
        "not covered 2 changes made by people, who could see the figures of test; too rare to test: class net" in text
    )
    assert "true gain +1.2 points (+0.2 to +2.2) over the predecessor, on 6 test groups that arrived" in text
    assert "floor met mIoU of 10.0 % 50.0 %" in text and "gain not met above zero at level 0.0005 +5.0 points" in text
    assert "class ground met loses less than 5.0 points +10.0 points, at worst -1.2" in text
    assert "class net cannot be tested loses less than 5.0 points -1.0 points" in text
    assert "latency met at most 1.1 times the champion's 1.02 times, at most 1.05" in text


def test_a_verdict_that_read_nothing_spends_nothing_and_one_of_an_earlier_release_has_no_budget(tmp_path: Path) -> None:
    nothing = {**GATE, "alpha_spent": 0.0, "judgements_left": 3, "changes_by_people": 0}
    del nothing["conditions"]
    undecidable = run_facts(decision="UNDECIDABLE", facts={"floor_miou": 0.1, "groups": 3, **nothing})
    text = said(evaluation_page(run=undecidable), tmp_path)
    assert "no alpha spent judgements left 3 (test set 1" in text and "not covered" not in text
    assert "condition of a PASS" not in text
    screened = {"rule": "lifetime", "level": 0.001, "judgements_left": 3, "set_number": 1, "passes": 0, "judged": False}
    of_all = {
        key: FACTS[key] for key in ("challenger_miou", "champion_miou", "champion_iou", "gain", "gain_low", "gain_high")
    }
    own = {**screened, **of_all, "settings": {"min_gain": 0.02, "confidence": 0.9}}
    text = said(evaluation_page(run=run_facts(decision="INCONCLUSIVE", facts=own)), tmp_path)
    assert "judgements left 3 (test set 1: 3 groups, 0 PASSes before)" in text
    assert "gain +5.0 points; 90 % interval +1.0 to +9.0, 3 groups" in text and "min_gain +2.0" in text
    earlier = said(evaluation_page(), tmp_path)
    assert "judgements left" not in earlier and "condition of a PASS" not in earlier
    plain = {**FACTS, "rule": "plain"}
    assert "nothing is promised over many" in said(evaluation_page(run=run_facts(facts=plain)), tmp_path)
