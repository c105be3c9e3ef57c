"""Attention over channels and places of a feature map, at the end of a decoder's stages."""

from __future__ import annotations

from collections.abc import Callable

from segmentation_models_pytorch.base.modules import SCSEModule
from timm.layers.cbam import CbamModule
from torch import nn
from torchvision.ops import SqueezeExcitation

from segmill.errors import InputError, near_miss

REDUCTION = 16

ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "se": lambda channels: SqueezeExcitation(channels, max(1, channels // REDUCTION)),
    "scse": lambda channels: SCSEModule(channels, min(channels, REDUCTION)),
    "cbam": lambda channels: CbamModule(channels, rd_channels=max(1, channels // REDUCTION)),
}


def check_attention(name: str) -> None:
    """Raise InputError, with the near miss, where ``name`` is none of ATTENTIONS."""
    if name not in ATTENTIONS:
        raise InputError(f"unknown attention {name}{near_miss(name, list(ATTENTIONS))} ({', '.join(ATTENTIONS)})")


def make_attention(name: str, channels: int) -> nn.Module:
    """Return a module that weighs a feature_BCHW of ``channels`` channels and keeps its shape.

    Args:
        name: ``none``; ``se``, squeeze and excitation of channels (Hu et al. 2018); ``scse``, that plus the same for
            places (Roy et al. 2018); ``cbam``, channels, then places, each by mean and maximum (Woo et al. 2018).

    Raises:
        InputError: another name.
    """
    check_attention(name)
    return ATTENTIONS[name](channels)
