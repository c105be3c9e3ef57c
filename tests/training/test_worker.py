from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from segmill import progress
from segmill.training.loop import Rank, Step
from segmill.training.worker import Reporter, class_weights

CPU = torch.device("cpu")


def test_class_weights_by_hand() -> None:
    assert class_weights("none", (1, 2), CPU) is None
    weights = class_weights("sqrt_inverse", (400, 100, 0), CPU)
    # 1/20 and 1/10 average 3/40; the class without pixels weighs nothing
    assert weights is not None and weights.tolist() == pytest.approx([2 / 3, 4 / 3, 0.0])


def test_progress_is_told_by_rank_0_twice_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"progress_path": str(tmp_path / "p.json"), "name": "a", "epochs": 3}
    now = [100.0]
    monkeypatch.setattr("segmill.training.worker.time.monotonic", lambda: now[0])
    Reporter(args, Rank(1, 2)).step(Step(2, 1, 4, torch.tensor(0.5), 8.0, 9.0))
    assert progress.read(tmp_path / "p.json") is None
    reporter = Reporter(args, Rank(0, 2))
    for seconds, number in ((0.0, 1), (0.4, 2), (0.5, 3), (0.9, 4)):
        now[0] = 100 + seconds
        reporter.step(Step(2, number, 4, torch.tensor(0.5), 8.0, 9.0))
    facts = progress.read(tmp_path / "p.json")
    assert facts is not None and facts.pop("time") > 0
    assert facts == {
        "pid": os.getpid(),
        "member": "a",
        "state": "training",
        "epoch": 2,
        "epochs": 3,
        "step": 3,
        "steps": 4,
        "loss": 0.5,
        "val_miou": None,
        "images_s": 8.0,
        "seconds_left": 9.0,
    }
