from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows import display
from flows.display import clock, member_line, running_line, showing
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
