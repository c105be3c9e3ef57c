"""One of each page, small, with one name wherever a name from outside can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segmill.reports.audit_page import AuditCard, AuditPage, ClassPair, NamedClass, SuggestedChange, write_audit_page
from segmill.reports.checks_page import ChecksPage, FoundIssue, IssueKind, Side, SidePair, write_checks_page
from segmill.reports.evaluation_page import (
    ClassShare,
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
from segmill.reports.tuning_page import SearchedKey, TrialRow, TuningPage, write_tuning_page

COLORS = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)
IMAGE = np.arange(24 * 32 * 3, dtype=np.uint32).reshape(24, 32, 3).astype(np.uint8)
MASK = (np.arange(24 * 32).reshape(24, 32) % 5 == 0).astype(np.uint8)


def write_evaluation(name: str, folder: Path) -> Path:
    """Write the page of an evaluation whose set, class, member, sample, group and recipe are called ``name``."""
    scores = {"miou": 0.5, "mdice": 0.6, "accuracy": 0.9, "iou": {"ground": 0.8, name: None}}
    scores["dice"] = scores["iou"]
    page = EvaluationPage(
        name=name,
        data_version=name,
        metrics={
            "split": "test", "samples": 3, "groups": 2, "classes": ["ground", name], "members": {name: scores},
            "ensemble": scores,
        },
        tta_hflip=False,
        classes=[ClassShare("ground", "#000000", 0.9), ClassShare(name, "#c86400", 0.1)],
        colors_K3=COLORS,
        ignore_id=255,
        members=[MemberRow(name, "resnet18", "fpn", name, 1.0)],
        gain=GainOverBest(name, 0.01, -0.01, 0.03, 2),
        confusion_KK=[[0.9, 0.1], [None, None]],
        curves=[Curve("loss", "Training loss", {name: [(1, 1.0), (2, 0.5)]})],
        examples=[Example(name, "group " + name, place, 0.5, 0.9, IMAGE, MASK, 1 - MASK) for place in (1, 2, 3)],
        training=TrainingSeen(
            name, name, 3, {"copy_paste": 1, "balance": 0},
            [SeenSample(name, [View("training-0-packed.png", "as packed", IMAGE, MASK)], [(2, 2, 4, 4)])],
        ),
    )  # fmt: skip
    write_evaluation_page(page, folder)
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


PAGES = {"evaluation": write_evaluation, "audit": write_audit, "checks": write_checks, "tuning": write_tuning}
