"""A tiny packed split and a tiny network: the real loop runs on them in fractions of a second."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segmill.data.augmentation import Augmenter
from segmill.data.dataset import TrainBatches
from segmill.data.packing import PackedSplit, Sample, SplitWriter
from segmill.models.members import MemberModule
from segmill.training.loop import Settings

SIDE_PX = 32
SETTINGS = Settings(
    member="tiny",
    epochs=4,
    lr=0.05,
    encoder_lr_factor=1.0,
    weight_decay=0.01,
    warmup_epochs=1.0,
    dice_weight=1.0,
    ema=0.0,
    precision="fp32",
    val_every=1,
    seed=7,
    num_classes=2,
    ignore_id=255,
)


class Tiny(nn.Module):
    """An encoder, a decoder, and everything that could break a resumed run: normalisation and dropout."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.Identity() if plain else nn.BatchNorm2d(4)
        self.dropout = nn.Identity() if plain else nn.Dropout(0.2)
        self.decoder = nn.Conv2d(4, 2, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BKHW: Tensor = self.decoder(self.dropout(self.norm(self.encoder(image_BCHW)).relu()))
        return logits_BKHW


def tiny_module(plain: bool = False) -> MemberModule:
    torch.manual_seed(1)
    return MemberModule(Tiny(plain), mean=(0.5,) * 3, std=(0.25,) * 3)


def batches(split: PackedSplit, rank: int = 0, world_size: int = 1) -> TrainBatches:
    augmenter = Augmenter([{"HorizontalFlip": {"p": 0.5}}], None, seed=7, ignore_id=255)
    return TrainBatches(split, augmenter, batch_size=4, seed=7, rank=rank, world_size=world_size)


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> PackedSplit:
    """Nine images; class 1 is where the image is bright."""
    folder = tmp_path_factory.mktemp("split")
    generator = np.random.default_rng(0)
    with SplitWriter(folder) as writer:
        for number in range(9):
            mask = (generator.random((SIDE_PX, SIDE_PX)) < 0.4).astype(np.uint8)
            noise = generator.integers(0, 80, (SIDE_PX, SIDE_PX, 3), np.uint8)
            writer.add(Sample(f"s{number}", f"g{number}", noise + 120 * mask[..., None], mask))
    return PackedSplit(folder)
