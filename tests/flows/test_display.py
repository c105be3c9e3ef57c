from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from flows import display
from flows.display import clock, counting, following, member_line, running_line, showing
from segmill import progress
from segmill.workspace import Workspace

TRAINING = {
    "state": "training", "epoch": 3, "epochs": 10, "step": 2, "steps": 4, "loss": 0.5, "val_miou": 0.7123,
    "images_s": 8.04, "seconds_left": 125.0,
}  # fmt: skip


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3725, "1h02m")])
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_a_member_says_epoch_loss_val_miou_speed_and_time_left() -> None:
    assert member_line(TRAINING) == "epoch 3/10  loss 0.500  val mIoU 0.712  8.0 images/s  2m05s left"
    assert member_line({"state": "starting"}) == "starting"
    assert member_line({**TRAINING, "epochs": None}).startswith("epoch 3  loss"), "a time budget ends it"


def test_a_stage_says_how_many_samples_of_how_many() -> None:
    assert running_line({"done": 1250, "total": 100000}) == "1,250 of 100,000 samples"
    assert running_line(TRAINING) == member_line(TRAINING)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_files_are_shown_as_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(display, "LIVE_INTERVAL_S", 0.01)
    workspace = Workspace(tmp_path)
    progress.report(workspace.progress / "prepare.json", stage="prepare", state="failed", why="of an earlier run")
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with showing(workspace, ["prepare", "validate", "finetune@a"], console):
        note = workspace.progress / "finetune@a.json"
        progress.report(note, stage="finetune@a", state="running", why="lr 1 -> 2", began=0.0)
        progress.report(workspace.progress / "finetune@a.member.json", **TRAINING)
        progress.report(workspace.progress / "prepare.json", stage="prepare", state="ran", why="new", seconds=2.0)
        progress.report(workspace.progress / "validate.json", stage="validate", state="running", why="", began=0.0)
        progress.counter(workspace.count("validate"))(3, 4)
    said = out.getvalue()
    assert "3 of 4 samples" in said
    assert "epoch 3/10  loss 0.500  val mIoU 0.712" in said
    assert "earlier run" not in said
    assert ("prepare: ran in 2s (new)" in said) is not terminal


def printed(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def said_by(console: Console) -> str:
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LIVE_INTERVAL_S", 0.01)
    monkeypatch.setattr(display, "PLAIN_INTERVAL_S", (0.0, 0.0))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("terminal", [False, True])
def test_counts_of_a_change_are_shown_with_and_without_a_total(terminal: bool) -> None:
    console = printed(terminal)
    with counting(console) as on_count:
        for done in (1200, 2400):
            on_count("reading [/b]", done, None)
            on_count("packing", done, 5000)
            if done == 1200:
                time.sleep(0.05)
        wait_for(lambda: "2,400 of 5,000 samples" in said_by(console))
    assert "reading [/b]" in said_by(console) and "2,400 samples" in said_by(console)
    if not terminal:
        assert "packing: 2,400 of 5,000 samples\n" in said_by(console)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("terminal", [False, True])
def test_a_count_file_is_followed_from_its_beginning(tmp_path: Path, terminal: bool) -> None:
    note, console = tmp_path / "validate.count.json", printed(terminal)
    progress.report(note, done=77, total=99)  # of an earlier check
    with following(console, "checking", note):
        count = progress.counter(note)
        count(1, 4)
        time.sleep(0.05)
        progress.report(note, done=3, total=4)
        wait_for(lambda: "3 of 4 samples" in said_by(console))
    assert "77" not in said_by(console)


@pytest.mark.usefixtures("quick")
def test_no_line_is_printed_twice(tmp_path: Path) -> None:
    """A long silence of the work used to be a line every ten seconds that said nothing new."""
    note, console = tmp_path / "validate.count.json", printed(terminal=False)
    with following(console, "checking", note):
        for done in (1, 2, 3):
            progress.report(note, done=done, total=4)
            time.sleep(0.1)
    lines = said_by(console).splitlines()
    assert len(lines) == len(set(lines)) and "checking: 3 of 4 samples" in lines


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_done_at_once_prints_no_line(terminal: bool) -> None:
    console = printed(terminal)
    with counting(console) as on_count:
        on_count("packing", 3, 3)
    assert terminal or said_by(console) == ""
