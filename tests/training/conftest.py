"""A tiny packed split and a tiny network: the real loop runs on them in fractions of a second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.training.settings import Settings
from segmill.training.targets import SignedDistances

SIDE_PX = 32
SETTINGS = Settings(member="tiny", epochs=4, lr=0.05, seed=7, precision="fp32", num_classes=2, ignore_id=255)
HEADS = ("presence", "boundary", "distance")


class Tiny(nn.Module):
    """Shaped as a MemberModule, with everything that could break a resumed run: normalisation and dropout."""

    def __init__(self, plain: bool = False, heads: Sequence[str] = (), deep: bool = False) -> None:
        super().__init__()
        norm = nn.Identity if plain else lambda: nn.BatchNorm2d(4)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm(), nn.ReLU(), nn.Conv2d(4, 4, 1), norm())
        self.dropout = nn.Identity() if plain else nn.Dropout(0.2)
        self.decoder = nn.Conv2d(4, 2, 1)
        channels = {"presence": 2, "boundary": 1, "distance": 2}
        self.heads = nn.ModuleDict({name: nn.Conv2d(4, channels[name], 1) for name in heads})
        self.deep = nn.Conv2d(4, 2, 1) if deep else None

    def encoder_stages(self) -> list[list[nn.Parameter]]:
        return [list(self.encoder[:2].parameters()), list(self.encoder[2:].parameters())]

    def set_gradient_checkpointing(self, on: bool) -> None:
        pass

    def forward(self, image_BHWC: Tensor, heads: bool | None = None) -> dict[str, Tensor]:
        feature = self.dropout(self.encoder(image_BHWC.permute(0, 3, 1, 2).float() / 64 - 2).relu())
        outputs = {"logits": self.decoder(feature)}
        if not self.training:
            return outputs
        outputs |= {name: head(feature) for name, head in self.heads.items()}
        if "presence" in outputs:
            outputs["presence"] = outputs["presence"].mean((2, 3))
        if "distance" in outputs:
            outputs["distance"] = outputs["distance"].tanh()
        if self.deep:
            outputs["deep1"] = self.deep(F.avg_pool2d(feature, 4))
        return outputs


def tiny_module(plain: bool = False, heads: Sequence[str] = (), deep: bool = False) -> Tiny:
    torch.manual_seed(1)
    return Tiny(plain, heads, deep)


def batches(
    split: PackedSplit, rank: int = 0, world_size: int = 1, *, size: int = 4, distances: bool = False
) -> TrainBatches:
    return TrainBatches(
        split,
        Augmenter([{"HorizontalFlip": {"p": 0.5}}], None, seed=7, ignore_id=255),
        batch_size=size,
        seed=7,
        rank=rank,
        world_size=world_size,
        distances=SignedDistances(2, 255) if distances else None,
    )


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
