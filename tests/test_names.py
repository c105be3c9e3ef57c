"""Hostile names of classes, samples and groups, through every table, list and record that is not a page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from flows.commands import audit as audit_command
from flows.commands import data as data_command
from flows.commands import status as status_command
from flows.commands.validate import issues_list
from flows.summary import markdown, run_scores, run_table, show_result
from segmill import progress, tracking
from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import ClassInfo, DatasetInfo
from segmill.evaluation.audit import Audited, Region, Suspect
from segmill.evaluation.audit_job import AuditResult
from segmill.evaluation.audit_report import csv_text
from segmill.names import for_spreadsheet, mlflow_name, visible
from segmill.workspace import Workspace
from tasks.stage import Outcome

HOSTILE = (
    "[/b]x", "[bold red]alarm[/]", "[link=https://example.org]click", "[]", "a\nb", "a\r\nb", "a\tb",
    "\x1b[2J\x1b[31mred", "\x07bell",
    "user\u202egnp.exe", "zero\u200bwidth", "<script>alert(1)</script>", "a|b", "`code`", "![x](http://e)",
    "=1+1", "+1", "-1", "@SUM(A1)", "=HYPERLINK(\"http://e\")", "../../etc/passwd", "/abs", "a//b", ".", "..", "a/../b",
    "x" * 400, "語" * 300, "%s {0} {name}", "a,b;\"c\"", "'quoted'", "NaN", " ", "\u00e9\u0301", "🚗",
)  # fmt: skip


def printed(table: Any, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(table)
    return out.getvalue()


def assert_tame(text: str) -> None:
    """Nothing moves the cursor, changes the direction or breaks a line."""
    assert [char for char in text if not char.isprintable() and char != "\n"] == []


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [60, 2000])
def test_the_final_table_prints_any_class(name: str, width: int) -> None:
    scores = {"miou": 0.5, "mdice": 0.6, "iou": {"road": 0.75, name: 0.25}}
    metrics = {"classes": ["road", name], "members": {"a": scores}, "ensemble": scores}
    rows = run_scores(metrics, {"champion_miou": 0.7})
    text = printed(run_table(rows, width), width)
    assert_tame(text)
    assert len(text.splitlines()) == 4
    assert visible(name)[:8].strip() in text and "0.2500" in text
    lines = markdown({
        "scores": rows, "verdict": {"decision": "PASS", "reasons": []}, "outcome": "x", "data_version": "1",
        "model": "m", "version": "1", "compared_with": None, "git_commit": "none",
    }).splitlines()  # fmt: skip
    head, rule, *body = [line for line in lines if line.startswith("|")]
    unescaped = [line.replace("\\|", "").count("|") for line in (head, rule, *body)]
    assert set(unescaped) == {6}, "as many cells in every row"
    assert "<script>" not in head


@pytest.mark.parametrize("name", HOSTILE)
def test_the_other_tables_print_any_class_and_id(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"rank": 1, "sample": name, "split": "val", "given": name, "suggested": name, "pixels": 9, "confidence": 0.5,
           "regions": 1, "sample_score": 0.5}  # fmt: skip
    found = AuditResult(page=Path("p"), table=Path("t"), samples={"val": 1}, suspicious=1, unknown=[name], first=[row])
    out = io.StringIO()
    audit_command.show(found, Console(file=out, width=300))
    assert_tame(out.getvalue())
    tables: list[Table] = [
        data_command._class_table({name: 1}, {name: 2}),
        issues_list([Issue("a-kind", "error", (name,), name, "do")], ()),
    ]
    for table in tables:
        text = printed(table)
        assert_tame(text)
        assert visible(name)[:5].strip() in text
    data_command._say_ids("added", [name])
    assert_tame(capsys.readouterr().out)


def test_status_prints_what_a_damaged_folder_and_a_failed_run_say(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "[bold]x[/i]")
    last = {"finished": "today", "outcome": "failed: class '[/b]x' is unknown"}
    stages = {"prepare": Outcome("prepare", "stale", "data/packed/[/red] is missing")}
    status = status_command.Status(workspace, "1" * 32, "[/b]", stages, last, None, None, False, "")
    out = io.StringIO()
    status_command.show(status, Console(file=out, width=200))
    for part in ("[bold]x[/i]", "class '[/b]x'", "data/packed/[/red] is missing", "([/b])"):
        assert part in out.getvalue()


@pytest.mark.parametrize("content", ["", "{", '{"finished": "to', "[]", "\x00\x00\x00"])
def test_a_torn_note_of_the_last_run_is_named(tmp_path: Path, content: str) -> None:
    workspace = Workspace(tmp_path)
    workspace.scratch.mkdir()
    workspace.last_run.write_text(content)
    assert progress.read(workspace.last_run) is None
    status = status_command.Status(workspace, None, "", {}, progress.read(workspace.last_run), None, None, False, "")
    out = io.StringIO()
    status_command.show(status, Console(file=out, width=200))
    assert f"what the last run left in {workspace.last_run} is damaged" in out.getvalue()


def test_a_result_prints_reasons_as_they_are() -> None:
    scores = [{"name": "ensemble", "miou": 0.5, "mdice": 0.5, "iou": {"[/b]x": 0.5}}]
    verdict = {"decision": "FAIL", "reasons": ["class [/b]x"]}
    out = io.StringIO()
    result = {"scores": scores, "verdict": verdict, "outcome": "[/i]", "report": "/[/b]/r", "version": "2"}
    result["scores"].append({"name": "champion", "miou": 0.9, "mdice": None, "iou": {"[/b]x": 0.9}})
    show_result(result, Console(file=out))
    assert "[/b]x lost 40.0 IoU points" in out.getvalue()
    assert "class [/b]x" in out.getvalue() and "/[/b]/r" in out.getvalue()


def test_the_audits_list_holds_no_formula() -> None:
    info = DatasetInfo("street", tuple(ClassInfo(id, name, "#000000") for id, name in enumerate(HOSTILE)), 255, None)
    region = Region(given=15, suggested=16, x=0, y=0, width=1, height=1, pixels=1, confidence=0.5, score=0.5)
    suspects = [Suspect(name, "val", name, f"images/{name}.png", f"masks/{name}.png", 0.5, (region,))
                for name in HOSTILE]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(csv_text(Audited(info, suspects, {}, {"val": 1}, 1, [])), newline="")))
    assert len(rows) == len(HOSTILE)
    cells = [cell for row in rows for key, cell in row.items() if key in ("sample", "group", "given", "suggested")]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))] == []
    assert [row["sample"].removeprefix("'") for row in rows] == [name.removeprefix("'") for name in HOSTILE]
    assert for_spreadsheet("plain") == "plain"


def test_mlflow_takes_any_class_and_keeps_them_apart(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = tracking.start_run(uri, "street", "retrain", artifacts=str(tmp_path / "files"))
    names = [*HOSTILE, "cars?", "cars!", "x" * 401]
    tracking.log_metrics(uri, run, {f"test/iou/{name}": 0.5 for name in names})
    tracking.log_params(uri, run, {"classes": {name: name for name in names}})
    tracking.set_tags(uri, run, {name: name for name in names})
    data = MlflowClient(uri).get_run(run).data
    assert len(data.metrics) == len(names)
    assert len([name for name in data.params]) == len(names)
    assert mlflow_name("test/iou/road") == "test/iou/road"
    assert json.dumps(sorted(data.metrics)), "names are text"
