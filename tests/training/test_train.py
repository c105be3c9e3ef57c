from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jobs import network

from segmill.data.packing.packed import PackInfo
from segmill.models.members import save_member
from segmill.train_settings import TrainSettings
from segmill.training.job import Start
from segmill.training.train import first_module, make_settings


def test_an_encoder_of_random_weights_is_never_frozen(packed: PackInfo) -> None:
    train = TrainSettings(freeze_epochs=3, unfreeze_epochs=2)
    frozen, free = (make_settings("a", network(lr=0.5), train, packed, pretrained=known) for known in (True, False))
    assert (frozen.freeze_epochs, frozen.unfreeze_epochs) == (3, 2)
    assert (free.freeze_epochs, free.unfreeze_epochs) == (0, 0)
    assert (frozen.member, frozen.lr, frozen.num_classes, frozen.clahe) == ("a", 0.5, 2, 1.5)


def test_a_champion_with_another_network_is_passed_over(packed: PackInfo, tmp_path: Path) -> None:
    torch.manual_seed(5)
    champion, spec, start = first_module("a", network(), packed, None)
    assert (start.source, spec.mean) == ("none", packed.mean)
    folder = tmp_path / "champion"
    save_member(folder, champion, spec, weights=start, params={}, data_version="", metrics={}, curves=[])
    champions = Start(folder, "champion:m/1")
    same, _, start = first_module("a", network(), packed, champions)
    assert start.source == "champion:m/1"
    assert torch.equal(next(same.parameters()), next(champion.parameters()))
    assert first_module("a", network(decoder="unet"), packed, champions)[2].source == "none"


@pytest.fixture
def packed() -> PackInfo:
    return PackInfo(
        "set", ("a", "b"), ("#000000", "#ffffff"), 255, (32, 32), (0.4,) * 3, (0.2,) * 3, (5, 5), {}, clahe=1.5
    )
