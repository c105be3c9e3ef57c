"""Decoders by name: segmentation-models-pytorch's and a fully convolutional one; their stages; what each can't take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.encoders import TimmViTEncoder, get_encoder
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from segmill.errors import InputError, near_miss
from segmill.models.backbones import is_plain_vit, size_options


class FCN(nn.Module):
    """FCN-8s (Long et al. 2015) on any encoder, a plain vision transformer's last, middle and early blocks included.

    An encoder, a decoder and a head as segmentation-models-pytorch has them; logits at the decoder's size.
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: None,
        classes: int,
        decoder_channels: int = 256,
        **options: Any,
    ) -> None:
        super().__init__()
        name = encoder_name.removeprefix("tu-")
        self.encoder: nn.Module = (
            TimmViTEncoder(name, pretrained=False, depth=3, **options)
            if is_plain_vit(encoder_name)
            else get_encoder(encoder_name, weights=encoder_weights, **options)
        )
        self.decoder = FCNDecoder(self.encoder.out_channels[-3:], decoder_channels)
        self.segmentation_head = nn.Conv2d(decoder_channels, classes, 1)


class FCNDecoder(nn.Module):
    """The features at 1/32, 1/16 and 1/8, each brought to ``width`` channels, upsampled and summed.

    The paper sums scores of classes. Here the layer from channels to classes follows the sum, which is the same
    function, and gives auxiliary heads a feature.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        fine, middle, deep = channels
        self.trunk = nn.Sequential(Conv2dNormActivation(deep, width, 3), nn.Dropout(0.1))
        self.skips = nn.ModuleList([FCNSkip(middle, width), FCNSkip(fine, width)])

    def forward(self, features: Sequence[Tensor], prefix_tokens: object = None) -> Tensor:
        feature_BCHW: Tensor = self.trunk(features[-1])
        for skip, finer_BCHW in zip(self.skips, (features[-2], features[-3]), strict=True):
            feature_BCHW = skip(feature_BCHW, finer_BCHW)
        return feature_BCHW


class FCNSkip(nn.Module):
    """A coarse feature brought to the size of a finer one and added to it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, 1)

    def forward(self, coarse_BCHW: Tensor, finer_BCHW: Tensor) -> Tensor:
        upsampled = F.interpolate(coarse_BCHW, size=finer_BCHW.shape[2:], mode="bilinear", align_corners=False)
        projected: Tensor = self.project(finer_BCHW)
        return projected + upsampled


class DPT(smp.DPT):  # type: ignore[misc]
    """smp's DPT (Ranftl et al. 2021), also for patches whose side is no power of two, such as DINOv2's 14 px.

    The decoder treats these as the nearest power of two; its logits, larger than the image by that ratio, are resized.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        strides = self.encoder.output_strides
        if any(stride != power_of_two(stride) for stride in strides):
            self.decoder = DPTDecoder(
                encoder_out_channels=self.encoder.out_channels,
                encoder_output_strides=[power_of_two(stride) for stride in strides],
                encoder_has_prefix_tokens=self.encoder.has_prefix_tokens,
                **{key.removeprefix("decoder_"): options[key] for key in _CHANNELS["dpt"] if key in options},
            )
            initialize_decoder(self.decoder)


def power_of_two(stride: int) -> int:
    """Return the power of two nearest to ``stride``, as a ratio: 16 for 14."""
    return 1 << round(math.log2(stride))


DECODERS: dict[str, Callable[..., nn.Module]] = {
    "fcn": FCN,
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
    "dpt": DPT,
}
# How many channels each has, by the names of its options. Linknet's are its backbone's.
_CHANNELS: dict[str, dict[str, int | tuple[int, ...]]] = {
    "fcn": {"decoder_channels": 256},
    "fpn": {"decoder_pyramid_channels": 256, "decoder_segmentation_channels": 128},
    "unet": {"decoder_channels": (256, 128, 64, 32, 16)},
    "unetplusplus": {"decoder_channels": (256, 128, 64, 32, 16)},
    "deeplabv3plus": {"decoder_channels": 256},
    "pspnet": {"psp_out_channels": 512},
    "pan": {"decoder_channels": 32},
    "manet": {"decoder_channels": (256, 128, 64, 32, 16), "decoder_pab_channels": 64},
    "upernet": {"decoder_channels": 256},
    "segformer": {"decoder_segmentation_channels": 256},
    "dpt": {"decoder_intermediate_channels": (256, 512, 1024, 1024), "decoder_fusion_channels": 256},
}
# PAN's feature pyramid attention halves the 1/16 features three times more.
MIN_SIDE_PX = {"pan": 128}
# They keep the deepest features at 1/16 by dilation.
DILATING = ("deeplabv3plus", "pan")
# They bring features to each other's size whatever it is; the others double it.
TAKE_ANY_SIZE = ("fcn", "unet", "pspnet", "upernet", "segformer")

# What a backbone and a decoder that don't fit raise, in timm, smp and torch.
MISFITS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
)
# The side of a probe that is large enough for backbones that pad nothing.
SIDE_PX = 256

# Where each decoder's stages end, coarse to fine.
_STAGES: dict[str, Callable[[Any], Iterable[nn.Module]]] = {
    "fcn": lambda decoder: (decoder.trunk, *decoder.skips),
    "fpn": lambda decoder: (decoder.p5, decoder.p4, decoder.p3, decoder.p2),
    "unet": lambda decoder: decoder.blocks,
    "unetplusplus": lambda decoder: (decoder.blocks[f"x_0_{level}"] for level in range(decoder.depth + 1)),
    "deeplabv3plus": lambda decoder: (decoder.aspp, decoder.block2),
    "pspnet": lambda decoder: (decoder.conv,),
    "pan": lambda decoder: (decoder.fpa, decoder.gau3, decoder.gau2, decoder.gau1),
    "linknet": lambda decoder: decoder.blocks,
    "manet": lambda decoder: decoder.blocks,
    "upernet": lambda decoder: (decoder.psp, *decoder.fpn_conv_blocks),
    "segformer": lambda decoder: decoder.mlp_stage,
    "dpt": lambda decoder: decoder.fusion_blocks,
}


def check_decoder(decoder: str) -> None:
    """Raise InputError, with the near miss, where ``decoder`` is none of DECODERS."""
    if decoder not in DECODERS:
        raise InputError(f"unknown decoder {decoder}{near_miss(decoder, list(DECODERS))} ({', '.join(DECODERS)})")


def channel_options(decoder: str, width: float) -> dict[str, int | tuple[int, ...]]:
    """Return the options that give a decoder ``width`` times its channels (Howard et al. 2017).

    Rounded to multiples of 32, or of 8 below 128, which layers with groups and processors want.

    Raises InputError where the backbone decides how many channels the decoder has.
    """
    if width == 1:
        return {}
    if decoder not in _CHANNELS:
        raise InputError(f"decoder {decoder} has its backbone's channels; leave decoder_width at 1")
    return {
        key: tuple(_scaled(one, width) for one in channels) if isinstance(channels, tuple) else _scaled(channels, width)
        for key, channels in _CHANNELS[decoder].items()
    }


def _scaled(channels: int, width: float) -> int:
    step = 32 if channels >= 128 else 8
    return max(step, step * round(channels * width / step))


def stages(decoder: str, module: nn.Module) -> list[nn.Module]:
    """Return the modules of a decoder, ``module``, whose outputs are its stages' features, coarse to fine."""
    return list(_STAGES[decoder](module))


def why_not(encoder: str, decoder: str, error: Exception) -> str:
    """Return why ``encoder`` (smp's name) and ``decoder`` don't go together, and what does, as half a sentence.

    ``error`` is what building or using them raised; its message is used where no better reason is known.
    """
    backbone = encoder.removeprefix("tu-")
    if is_plain_vit(encoder) and decoder not in ("dpt", "fcn"):
        return (
            f"{backbone} is a plain vision transformer, whose features all have one scale, and {decoder} needs scales "
            "that halve from one to the next; choose dpt or fcn"
        )
    if decoder == "dpt" and not encoder.startswith("tu-"):
        return (
            f"dpt takes timm's backbones, vision transformers above all, and {backbone} is segmentation-models-"
            "pytorch's own; choose a vit, or segformer, upernet or fpn as the decoder"
        )
    try:
        plain: nn.Module = get_encoder(encoder, weights=None, **size_options(encoder)).eval()
    except MISFITS:
        return (
            f"segmentation-models-pytorch can't read features of {backbone} at several scales "
            f"({first_line(error)}); choose another backbone"
        )
    if decoder in DILATING and isinstance(error, ValueError | TypeError | AssertionError | NotImplementedError):
        return (
            f"{decoder} dilates the last stage to keep it at 1/16, and {backbone} can't be dilated; choose fpn, unet "
            "or upernet, which take its stages as they are"
        )
    if encoder.startswith("mit_") and decoder in ("unetplusplus", "linknet"):
        return (
            f"segmentation-models-pytorch does not offer {decoder} with its own mit backbones; choose segformer, "
            "upernet, unet or fpn"
        )
    sides = _sides(plain)
    if sides and any(finer != 2 * coarser for finer, coarser in pairwise(sides)) and decoder not in TAKE_ANY_SIZE:
        return (
            f"the features of {backbone} are {', '.join(map(str, sides))} px wide at {SIDE_PX} px, not halves of one "
            f"another, and {decoder} needs that; choose {', '.join(TAKE_ANY_SIZE)}, or a backbone that pads"
        )
    return f"{first_line(error)}; choose another decoder: fpn and unet take most backbones"


def _sides(encoder: nn.Module) -> list[int]:
    try:
        with torch.inference_mode():
            features = encoder(torch.zeros(1, 3, SIDE_PX, SIDE_PX))
    except MISFITS:
        return []
    return [feature.shape[-1] for feature in features]


def first_line(error: Exception) -> str:
    """Return the first line of what ``error`` says, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
