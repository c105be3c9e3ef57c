"""Auxiliary heads: additional tasks on the decoder's feature during training."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from segmill.errors import InputError, near_miss

WIDTH = 64


class Presence(nn.Module):
    """logits_BK: is the class anywhere in the image? (As the semantic encoding loss of Zhang et al. 2018 asks.)"""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.classify = nn.Linear(channels, num_classes)

    def forward(self, feature_BCHW: Tensor, size_px: tuple[int, int]) -> Tensor:
        logits_BK: Tensor = self.classify(feature_BCHW.mean(dim=(2, 3)))
        return logits_BK


class PerPixel(nn.Module):
    """``maps`` maps at the image's size (height, width), from one hidden layer on the feature."""

    def __init__(self, channels: int, maps: int):
        super().__init__()
        self.layers = nn.Sequential(Conv2dNormActivation(channels, WIDTH, 3), nn.Conv2d(WIDTH, maps, 1))

    def forward(self, feature_BCHW: Tensor, size_px: tuple[int, int]) -> Tensor:
        return F.interpolate(self.layers(feature_BCHW), size=size_px, mode="bilinear", align_corners=False)


class Distance(PerPixel):
    """distance_BKHW in -1..1: to each class's border, below 0 inside of it (as Xue et al. 2020)."""

    def forward(self, feature_BCHW: Tensor, size_px: tuple[int, int]) -> Tensor:
        return super().forward(feature_BCHW, size_px).tanh()


# boundary: B1HW logits of lying on a border between classes (as Takikawa et al. 2019).
HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "presence": Presence,
    "boundary": lambda channels, num_classes: PerPixel(channels, 1),
    "distance": Distance,
}


def check_heads(names: tuple[str, ...]) -> None:
    """Raise InputError, with the near miss, for a name that is none of HEADS."""
    for name in names:
        if name not in HEADS:
            raise InputError(f"unknown head {name}{near_miss(name, list(HEADS))} ({', '.join(HEADS)})")
