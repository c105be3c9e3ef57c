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
from flows.commands.status import Status, gate_line, model_line, show, show_history
from flows.interrupted import begin, end, interrupted
from segmill import progress
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.workspace import Workspace
from tasks.stage import noted

CHAMPION = {"name": "segmill-street", "version": "12", "miou": 0.71239, "verdict": "PASS", "data_version": "0123456789"}


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_no_verdict_says_what_brings_one() -> None:
    narrow = console()
    show_history([], narrow)
    assert printed(narrow) == "no verdict yet: `segmill retrain` brings the first\n"


def test_every_row_is_a_line_that_is_whole_in_80_columns_and_decisions_say_who_and_why(workspace: Workspace) -> None:
    set_up(workspace.root)
    book, facts = workspace_ledger(workspace.root), {"gain": -0.0123, "alpha_spent": 0.000592}
    for entry in (
        Entry(action="promote", version="1", decision="PASS"),
        Entry(action="promote", version="112", decision="PASS", facts={"gain": 0.01}),
        Entry(action="refuse", version="113", decision="INCONCLUSIVE", facts=facts),
        Entry(action="rollback", version="1", because="it misses trams"),
    ):
        book.append(book.begin("segmill-street"), entry)
    narrow = console()
    show_history(book.rows(), narrow)
    title, heading, first, _, third, fourth, note = printed(narrow).splitlines()
    assert title == "segmill-street, the latest last"
    assert heading.split() == ["#", "time", "(UTC)", "version", "action", "verdict", "against", "gain", "alpha"]
    assert first.split()[3:] == ["1", "promote", "PASS", "-", "-", "-"]
    assert third.split()[3:] == ["113", "refuse", "INCONCLUSIVE", "112", "-0.0123", "0.0006"]
    assert fourth.split()[3:] == ["1", "rollback", "-", "112", "-", "-"]
    assert note.startswith("  4: ") and note.endswith(": it misses trams") and "signed with key" in note
    said = json.loads(CliRunner().invoke(app, ["history", "--json", "-w", str(workspace.root)]).stdout)
    assert [row["number"] for row in said] == [1, 2, 3, 4]
    assert said[2]["facts"] == facts and said[3]["actor"] and said[3]["champion"] == "1"


def test_what_is_left_of_a_test_set_is_a_line() -> None:
    gate = {
        "rule": "lifetime", "set_number": 1, "judgements": 20, "judgements_left": 17, "passes": 1, "level": 3.3e-5,
        "groups": 14, "groups_needed": 15, "renewal": "A new test set begins with 13 groups.",
    }  # fmt: skip
    said = gate_line(gate)
    assert said.startswith(
        "test set 1: 17 of 20 judgements left, 1 PASS so far; the next takes 15 groups and there are 14"
    )
    assert said.endswith("A new test set begins with 13 groups.")
    assert gate_line(gate | {"groups": 15, "passes": 2}).endswith(
        "2 PASSes so far; the next asks for p below 3e-05, 15 of 15 groups can show it"
    )
    assert "none" not in gate_line(gate | {"judgements_left": 0, "level": 0.0, "groups_needed": None}).lower()
    assert gate_line(gate | {"rule": "plain"}).startswith("plain: judges one night at a time and promises nothing")


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
