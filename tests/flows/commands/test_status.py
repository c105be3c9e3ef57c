"""`segmill history` and `segmill status`: what they print, from a real ledger and the notes of a run."""

from __future__ import annotations

import io
import json
import os
from datetime import datetime

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.commands.status import Status, model_line, show, show_history
from flows.interrupted import begin, end, interrupted
from segmill import progress
from segmill.promotion import earlier_ledger as ledger
from segmill.workspace import Workspace
from tasks.promote import ledger_url
from tasks.stage import noted

CHAMPION = {"name": "segmill-street", "version": "12", "miou": 0.71239, "verdict": "PASS", "data_version": "0123456789"}


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_no_verdict_says_what_brings_one(workspace: Workspace) -> None:
    narrow = console()
    show_history(workspace, narrow)
    assert printed(narrow) == "no verdict yet: `segmill retrain` brings the first\n"


def test_every_verdict_is_a_line_that_is_whole_in_80_columns(workspace: Workspace) -> None:
    url, facts = ledger_url(workspace), {"gain": -0.0123, "challenger_miou": 0.71239}
    entries = [
        ledger.EarlierEntry("promote", "segmill-street", "1", None, "PASS", facts={"challenger_miou": 0.6}),
        ledger.EarlierEntry("refuse", "segmill-street", "112", "1", "INCONCLUSIVE", facts=facts),
        ledger.EarlierEntry("rollback", "segmill-street", "1", "112"),
    ]
    for number, entry in enumerate(entries):
        ledger.append(url, entry, after=number)
    narrow = console()
    show_history(workspace, narrow)
    title, heading, first, second, third = printed(narrow).splitlines()
    assert title == "segmill-street, the latest last"
    assert heading.split() == ["time", "(UTC)", "version", "action", "verdict", "against", "mIoU", "gain"]
    assert first.split()[1:] == ["1", "promote", "PASS", "-", "0.6000", "-"]
    assert second.split()[1:] == ["112", "refuse", "INCONCLUSIVE", "1", "0.7124", "-0.0123"]
    assert third.split()[1:] == ["1", "rollback", "-", "112", "-", "-"]
    said = json.loads(CliRunner().invoke(app, ["history", "--json", "-w", str(workspace.root)]).stdout)
    assert [entry["number"] for entry in said] == [1, 2, 3]
    assert said[1]["facts"] == facts and said[1]["decision"] == "INCONCLUSIVE"


def status(workspace: Workspace, **own: object) -> Status:
    facts = {
        "data_version": "0123", "data_why": "files changed", "stages": {}, "last_run": None, "champion": CHAMPION,
        "challenger": None, "judged": False, "writer": "", "interrupted": None,
    }  # fmt: skip
    return Status(workspace, **{**facts, **own})  # type: ignore[arg-type]


def test_the_models_that_stand_and_the_last_run_are_said(workspace: Workspace) -> None:
    assert model_line(CHAMPION) == "segmill-street version 12, test mIoU 0.7124, PASS, data 01234567"
    wide = Console(file=io.StringIO(), width=160)
    show(status(workspace, writer="`segmill tune` runs", last_run={"finished": "today", "outcome": "[b]done"}), wide)
    said = printed(wide)
    assert "champion      segmill-street version 12" in said and "challenger    none" in said
    assert "data version  0123  (files changed)" in said
    assert "now           `segmill tune` runs" in said and "last run today, [b]done" in said


def test_a_torn_note_of_the_last_run_is_said(workspace: Workspace) -> None:
    workspace.last_run.parent.mkdir(exist_ok=True)
    workspace.last_run.write_text(json.dumps({"finished": "today"})[:9])
    wide = Console(file=io.StringIO(), width=160)
    show(status(workspace), wide)
    assert "is damaged; the next run writes it anew" in printed(wide)


def test_an_interrupted_retrain_is_said_until_the_next_one_ends(workspace: Workspace) -> None:
    assert interrupted(workspace) is None
    begin(workspace)
    assert str(interrupted(workspace)).endswith(" before its first step; the next one resumes there")
    note = workspace.progress / "prepare.json"
    progress.report(workspace.progress / "version.json", state="ran")
    with pytest.raises(KeyboardInterrupt), noted(workspace, "prepare"):
        raise KeyboardInterrupt
    progress.report(workspace.progress / "augment.json", state="failed")
    os.utime(note, (2e9, 2e9))
    found = interrupted(workspace)
    assert found is not None and found.steps == ("prepare",)
    assert found.last_heard == datetime.fromtimestamp(2e9).isoformat(" ", "seconds")
    wide = Console(file=io.StringIO(), width=160)
    show(status(workspace, interrupted=found), wide)
    assert f"interrupted   the retrain of {found.began} was interrupted at {found.last_heard} in prepare" in printed(
        wide
    )
    end(workspace)
    assert interrupted(workspace) is None
