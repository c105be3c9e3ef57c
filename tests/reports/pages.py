"""One of each page, small, with one name wherever a name from outside can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segmill.metrics.intervals import Gain, Interval
from segmill.reports.audit_page import AuditCard, AuditPage, ClassPair, NamedClass, SuggestedChange, write_audit_page
from segmill.reports.checks_page import ChecksPage, FoundIssue, IssueKind, Side, SidePair, write_checks_page
from segmill.reports.evaluation_page import (
    ClassShare,
    Contrast,
    Curve,
    EvaluationPage,
    Example,
    GainOverBest,
    MemberRow,
    SeenSample,
    TrainingSeen,
    View,
    write_evaluation_page,
)
from segmill.reports.run_facts import Changes, Link, RunFacts, VerdictFacts
from segmill.reports.tuning_page import SearchedKey, TrialRow, TuningPage, write_tuning_page
from segmill.reports.windows_page import Point, StatisticRow, WindowsPage, write_windows_page

COLORS = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)
IMAGE = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3).astype(np.uint8)
MASK = (np.arange(24 * 32).reshape(24, 32) % 5 == 0).astype(np.uint8)


FACTS = {
    "challenger_miou": 0.5, "floor_miou": 0.1, "samples": 3, "champion_miou": 0.45, "champion_iou": [0.7, None],
    "gain": 0.05, "gain_low": 0.01, "gain_high": 0.09, "min_gain": 0.0, "confidence": 0.95, "groups": 3,
    "classes_compared": [0],
}  # fmt: skip


def run_facts(name: str = "net", **own: Any) -> RunFacts:
    """Return the facts of a run that passed against version 1; each of ``own`` replaces a part of it or its verdict."""
    verdict = {
        "decision": "PASS", "outcome": f"version 2 of {name} is the champion now", "reasons": [f"It is better: {name}"],
        "warnings": [f"member {name} ended early"], "next_steps": [f"try {name}"],
        "version": "2", "rival": "1", "rival_serves": False, "facts": FACTS,
    }  # fmt: skip
    verdict |= {key: own.pop(key) for key in list(own) if key in verdict}
    plain: dict[str, Any] = {
        "model": name, "finished": "2026-11-29 04:50 UTC", "seconds": 125.0, "data_version": name, "commit": name,
        "segmill_version": "0.1.0", "trained": {name: 54.0},
        "settings": {f"finetune@{name}": [(f"members.{name}", name)]},
        "links": [Link("this run", "http://127.0.0.1:5000/#/1")], "member_links": {name: "http://127.0.0.1:5000/#/2"},
        "local_pages": True, "changes": Changes(data=[name], settings=[name], code=[name]),
    }  # fmt: skip
    return RunFacts(**plain | own, verdict=VerdictFacts(**verdict))


def evaluation_page(name: str = "net", *others: str, **own: Any) -> EvaluationPage:
    """Return the page of a set, class, member, sample, group and recipe that are called ``name``.

    ``others``: more members; ``own``: what replaces a part of the page.
    """
    scores = {"miou": 0.5, "mdice": 0.6, "accuracy": 0.9, "iou": {"ground": 0.8, name: None}}
    scores["dice"] = scores["iou"]
    members = (name, *others)
    plain: dict[str, Any] = {
        "name": name,
        "run": run_facts(name, trained=dict.fromkeys(members), member_links=dict.fromkeys(members, "http://127.0.0.1")),
        "metrics": {
            "split": "test", "samples": 3, "groups": 3, "classes": ["ground", name],
            "members": dict.fromkeys(members, scores), "ensemble": scores,
        },
        "scores": {key: Interval(0.5, 0.4, 0.6, 3) for key in ("miou", "mdice", "accuracy")},
        "tta_hflip": False,
        "classes": [ClassShare("ground", "#000000", 0.9), ClassShare(name, "#c86400", 0.1)],
        "colors_K3": COLORS,
        "ignore_id": 255,
        "members": [MemberRow(one, "resnet18", "fpn", one, 1.0) for one in members],
        "gain": GainOverBest(name, Gain(0.01, -0.01, 0.03, 3, (0,))),
        "confusion_KK": [[0.9, 0.1], [None, None]],
        "curves": [Curve("Training loss", {name: [(1, 1.0), (2, 0.5)]})],
        "examples": [Example(name, "group " + name, place, 0.5, 0.9, IMAGE, MASK, 1 - MASK) for place in (1, 2, 3)],
        "contrasts": [Contrast(name, 0.25, 0.4, 0.6, IMAGE, MASK, 1 - MASK, MASK)],
        "training": TrainingSeen(
            name, name, 3, {"copy_paste": 1, "balance": 0},
            [SeenSample(name, [View("as packed", IMAGE, MASK)], [(2, 2, 4, 4)])],
        ),
    }  # fmt: skip
    return EvaluationPage(**plain | own)


def write_evaluation(name: str, folder: Path) -> Path:
    """Write the page of a run whose set, class, member, sample, group, recipe and changes are called ``name``."""
    write_evaluation_page(evaluation_page(name), folder)
    return folder / "index.html"


def write_audit(name: str, folder: Path) -> Path:
    """Write the page of an audit whose set, class, sample, group and mask are called ``name``."""
    given, suggested = NamedClass("ground", "#000000"), NamedClass(name, "#c86400")
    change = SuggestedChange(given, suggested, (2, 3, 10, 8), 80, 0.9, 0.4)
    page = AuditPage(
        name=name,
        classes=[given, suggested],
        colors_K3=COLORS,
        ignore_id=255,
        samples={"val": 3},
        suspicious=1,
        listed=1,
        drawn=1,
        unknown=[name],
        pairs=[ClassPair(given, suggested, 1)],
        cards=[AuditCard(1, name, "val", "group " + name, name, 0.4, [change], 2, IMAGE, MASK, 1 - MASK, MASK > 0)],
    )
    write_audit_page(page, folder / "index.html")
    return folder / "index.html"


def write_checks(name: str, folder: Path) -> Path:
    """Write the page of a checked set that, like its samples, files and groups, is called ``name``."""
    side = Side(name, name, "group " + name, "train")
    kinds = [
        IssueKind("unknown_ids", "stops", True, [FoundIssue(name, name, [name], True)], []),
        IssueKind("near_duplicate", "warning", False, [FoundIssue(name, name, [name], True)],
                  [SidePair((side, side), 0.9, True)]),
    ]  # fmt: skip
    write_checks_page(ChecksPage(name, 3, kinds, lambda file: IMAGE), folder / "index.html")
    return folder / "index.html"


def write_tuning(name: str, folder: Path) -> Path:
    """Write the page of a tuning whose member and choices are called ``name``."""
    trials = [
        TrialRow(1, "full", 1.0, 0.5, 0, True, "", ["fpn"], [(1, 0.4), (2, 0.5)]),
        TrialRow(2, "stopped", 0.5, 0.3, 0, True, name, [name], [(1, 0.3)]),
        TrialRow(3, "full", 1.0, 0.45, 1, False, "", [None], [(1, 0.4), (2, 0.45)]),
    ]
    points = [(0.0, 0.5, True), (1.0, 0.3, False)]
    key = SearchedKey("members.a.decoder", f"fpn,{name}", name, "fpn", ["fpn", name], 0.0, 0.0, False, points, 1.0, 0.0)
    page = TuningPage(
        member=name,
        epochs=2,
        seed=0,
        states={"full": 1, "stopped": 1},
        seconds=90.0,
        verdict=name,
        assignments=[name],
        trials=trials,
        winner=1,
        keys=[key],
        importances={"members.a.decoder": 1.0},
        judged_at=0.25,
        winner_mious=[0.5],
        current_mious=[0.4, 0.45],
    )
    write_tuning_page(page, folder)
    return folder / "index.html"


def write_windows(name: str, folder: Path) -> Path:
    """Write a page of the windows with one statistic that moved and one that did not, in an hour without images too."""
    points = [Point(f"{hour}:00 UTC", mean, 7) for hour, mean in enumerate((0.4, 0.5, None, 0.8))]
    row: dict[str, Any] = {
        "title": f"area of {name}", "unit": "share", "usual": 0.45, "low": 0.2, "high": 0.6, "now": 0.8, "outside": 0.9,
        "p_value": "0.0010", "points": points,
    }  # fmt: skip
    moved = StatisticRow(**row, moved=True, says="far higher", since="3:00 UTC", since_index=3)
    quiet = StatisticRow(**{**row, "outside": None}, moved=False, says="", since="", since_index=None)
    page = WindowsPage(
        model=name, version=name, windows=4, length="1 h", images=21, first="0:00 UTC", last="3:00 UTC", level=0.01,
        compared_with="60 images", verdict="1 of 2 statistics moved", rows=[moved, quiet],
    )  # fmt: skip
    write_windows_page(page, folder / "index.html")
    return folder / "index.html"


PAGES = {
    "evaluation": write_evaluation, "audit": write_audit, "checks": write_checks, "tuning": write_tuning,
    "windows": write_windows,
}  # fmt: skip
