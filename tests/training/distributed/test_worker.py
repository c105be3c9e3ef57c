from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from segmill import progress
from segmill.data.packing.packed import PackInfo
from segmill.models.members import save_member
from segmill.train_settings import TrainSettings
from segmill.training.clock import Rank
from segmill.training.distributed.worker import Reporter, first_module, make_settings
from segmill.training.loop import Step


def test_progress_is_told_by_rank_0_twice_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"progress_path": str(tmp_path / "p.json"), "name": "a", "epochs": 3, "max_minutes": None}
    now = [100.0]
    monkeypatch.setattr("segmill.training.distributed.worker.time.monotonic", lambda: now[0])
    Reporter(args, Rank(1, 2)).step(Step(2, 1, 4, torch.tensor(0.5), 8.0, 9.0, 0.4))
    assert progress.read(tmp_path / "p.json") is None
    reporter = Reporter(args, Rank(0, 2))
    for seconds, number in ((0.0, 1), (0.4, 2), (0.5, 3), (0.9, 4)):
        now[0] = 100 + seconds
        reporter.step(Step(2, number, 4, torch.tensor(0.5), 8.0, 9.0, 0.4))
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
        "share_done": 0.4,
        "loss": 0.5,
        "val_miou": None,
        "images_s": 8.0,
        "seconds_left": 9.0,
    }
    Reporter({**args, "max_minutes": 5}, Rank(0, 1)).step(Step(2, 1, 4, torch.tensor(0.5), 8.0, 9.0, 0.4))
    budgeted = progress.read(tmp_path / "p.json")
    assert budgeted is not None and budgeted["epochs"] is None, "the time ends it before"


def test_an_encoder_of_random_weights_is_never_frozen(packed: PackInfo) -> None:
    args = arguments(freeze_epochs=3, unfreeze_epochs=2, lr=0.5)
    frozen, free = (make_settings(args, packed, pretrained=known) for known in (True, False))
    assert (frozen.freeze_epochs, frozen.unfreeze_epochs) == (3, 2)
    assert (free.freeze_epochs, free.unfreeze_epochs) == (0, 0)
    assert (frozen.member, frozen.lr, frozen.num_classes, frozen.clahe) == ("a", 0.5, 2, 1.5)


def test_a_champion_with_another_network_is_passed_over(packed: PackInfo, tmp_path: Path) -> None:
    torch.manual_seed(5)
    champion, spec, start = first_module(arguments(), packed)
    assert (start.source, spec.mean) == ("none", packed.mean)
    folder = tmp_path / "champion"
    save_member(folder, champion, spec, weights=start, params={}, data_version="", metrics={}, curves=[])
    same, _, start = first_module(arguments(start_folder=str(folder), start_source="champion:m/1"), packed)
    assert start.source == "champion:m/1"
    assert torch.equal(next(same.parameters()), next(champion.parameters()))
    other = arguments(start_folder=str(folder), start_source="champion:m/1", decoder="unet")
    assert first_module(other, packed)[2].source == "none"


def arguments(**own: Any) -> dict[str, Any]:
    return {
        "name": "a", "backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.1,
        "decoder_width": 1.0, "attention": "none", "context": "none", "aux_heads": {}, "head_weights": "fixed",
        "deep_supervision": 0.0,
        "start_folder": None, "start_source": None, **asdict(TrainSettings()), **own,
    }  # fmt: skip


@pytest.fixture
def packed() -> PackInfo:
    return PackInfo(
        "set", ("a", "b"), ("#000000", "#ffffff"), 255, (32, 32), (0.4,) * 3, (0.2,) * 3, (5, 5), {}, clahe=1.5
    )
