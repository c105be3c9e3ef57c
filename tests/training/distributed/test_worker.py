from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from jobs import train_job

from flows.display import member_line
from segmill import progress
from segmill.training.clock import Rank
from segmill.training.distributed.stall import Watchdog
from segmill.training.distributed.worker import Reporter
from segmill.training.loop import Step

CALM = Watchdog(Path("/nowhere"), None)


def test_progress_is_told_by_rank_0_twice_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = train_job(tmp_path, epochs=3)
    now = [100.0]
    monkeypatch.setattr("segmill.training.distributed.worker.time.monotonic", lambda: now[0])
    Reporter(job, Rank(1, 2), CALM).state("looking")
    Reporter(job, Rank(1, 2), CALM).step(Step(2, 1, 4, torch.tensor(0.5), 8.0, 9.0, 0.4))
    assert progress.read(tmp_path / "progress.json") is None
    reporter = Reporter(job, Rank(0, 2), CALM)
    reporter.state("looking for the largest batch that fits")
    said = progress.read(tmp_path / "progress.json")
    assert said is not None and member_line(said) == "looking for the largest batch that fits"
    for seconds, number in ((0.0, 1), (0.4, 2), (0.5, 3), (0.9, 4)):
        now[0] = 100 + seconds
        reporter.step(Step(2, number, 4, torch.tensor(0.5), 8.0, 9.0, 0.4))
    facts = progress.read(tmp_path / "progress.json")
    assert facts is not None and facts.pop("time") > 0
    assert facts == {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "pause_s": 5.0,
        "member": "a",
        "state": "training",
        "epoch": 2,
        "epochs": 3,
        "step": 3,
        "steps": 4,
        "share_done": 0.4,
        "loss": 0.5,
        "val_miou": None,
        "images_s": 8.0,
        "seconds_left": 9.0,
    }
    Reporter(train_job(tmp_path, epochs=3, max_minutes=5), Rank(0, 1), CALM).step(
        Step(2, 1, 4, torch.tensor(0.5), 8.0, 9.0, 0.4)
    )
    budgeted = progress.read(tmp_path / "progress.json")
    assert budgeted is not None and budgeted["epochs"] is None, "the time ends it before"
