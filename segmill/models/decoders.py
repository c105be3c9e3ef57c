"""Decoders by name, and a backbone and a decoder put together by segmentation-models-pytorch."""

from __future__ import annotations

import warnings

import segmentation_models_pytorch as smp
import torch
from torch import nn

from segmill.errors import InputError, near_miss
from segmill.models.backbones import size_options

DECODERS = {
    "fpn": smp.FPN,
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "pspnet": smp.PSPNet,
    "pan": smp.PAN,
    "linknet": smp.Linknet,
    "manet": smp.MAnet,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "dpt": smp.DPT,
}
# PAN's feature pyramid attention halves the 1/16 features three times more.
MIN_SIDE_PX = {"pan": 128}


def check_decoder(decoder: str) -> None:
    """Raise InputError, with the near miss, where ``decoder`` is none of DECODERS."""
    if decoder not in DECODERS:
        raise InputError(f"unknown decoder {decoder}{near_miss(decoder, list(DECODERS))} ({', '.join(DECODERS)})")


def assemble(encoder: str, decoder: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Return a network of random weights: image_BCHW float to logits_BKHW.

    H and W must be divisible by 32 and at least MIN_SIDE_PX. ``encoder`` is smp's name for it
    (see backbones.encoder_name). Never goes online.
    Raises InputError for an unknown decoder and for a pair that does not fit (say, a decoder that dilates on
    a backbone that can't be dilated), found by sending one small image through.
    """
    check_decoder(decoder)
    side = max(64, MIN_SIDE_PX.get(decoder, 0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net: nn.Module = DECODERS[decoder](
                encoder_name=encoder,
                encoder_weights=None,
                in_channels=in_channels,
                classes=num_classes,
                **size_options(encoder),
            )
        with torch.inference_mode():
            net.eval()(torch.zeros(1, in_channels, side, side))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        AssertionError,
        NotImplementedError,
        RuntimeError,
    ) as reason:
        detail = str(reason).strip().splitlines()
        raise InputError(
            f"backbone {encoder.removeprefix('tu-')} and decoder {decoder} don't go together "
            f"({detail[0] if detail else type(reason).__name__}); choose another decoder: fpn and unet take "
            "most backbones"
        ) from reason
    return net.train()
