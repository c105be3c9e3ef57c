"""A network: a backbone and a decoder put together, with the attention, context and auxiliary heads of its member."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmill.errors import InputError
from segmill.models.attention import check_attention, make_attention
from segmill.models.auxiliary import HEADS, check_heads
from segmill.models.backbones import is_plain_vit, own_side_px, size_options
from segmill.models.context import check_context, make_context
from segmill.models.decoders import (
    DECODERS,
    MIN_SIDE_PX,
    MISFITS,
    channel_options,
    check_decoder,
    power_of_two,
    stages,
    why_not,
)

STRIDE_PX = 32


class Network(nn.Module):
    """An encoder, a decoder and a head of segmentation-models-pytorch, and what a member adds to them.

    Takes image_BCHW float whose height and width are multiples of ``multiple_px`` and at least ``min_side_px``.

    Additions never rename or wrap modules, so that weights fit with and without them: ``context`` works on the
    deepest feature, ``attention`` follows the decoder's stages by forward hooks, ``heads`` and ``deep`` only read.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, segmentation_head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = segmentation_head
        self.context: nn.Module = nn.Identity()
        self.attention = nn.ModuleList()
        self.heads = nn.ModuleDict()
        self.deep = nn.ModuleList()
        self.deep_stages: list[int] = []
        self.multiple_px = STRIDE_PX
        self.min_side_px = STRIDE_PX
        self._staged: dict[int, Tensor] | None = None

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return logits_BKHW at the image's size."""
        return self.outputs(image_BCHW, auxiliary=False)["logits"]

    def outputs(self, image_BCHW: Tensor, *, auxiliary: bool = True) -> dict[str, Tensor]:
        """Return ``logits``, and with ``auxiliary`` the heads' outputs and ``deep1`` (the finest), ``deep2``, ..."""
        self._staged = {} if auxiliary and self.deep else None
        size_px = (image_BCHW.shape[2], image_BCHW.shape[3])
        encoded = self.encoder(image_BCHW)
        features, *tokens = encoded if isinstance(encoded, tuple) else (encoded,)
        feature_BCHW = self.decoder([*features[:-1], self.context(features[-1])], *tokens)
        logits_BKHW: Tensor = self.segmentation_head(feature_BCHW)
        if logits_BKHW.shape[2:] != size_px:
            logits_BKHW = F.interpolate(logits_BKHW, size=size_px, mode="bilinear", align_corners=False)
        outputs = {"logits": logits_BKHW}
        if auxiliary:
            outputs |= {name: head(feature_BCHW, size_px) for name, head in self.heads.items()}
        if self._staged is not None:
            staged, self._staged = self._staged, None
            for number, (stage, classify) in enumerate(zip(self.deep_stages, self.deep, strict=True), start=1):
                outputs[f"deep{number}"] = classify(staged[stage])
        return outputs

    def follow(self, found: Sequence[nn.Module], attention: Sequence[nn.Module]) -> None:
        """Let each of the decoder's stages ``found`` end in the attention of the same index."""
        self.attention.extend(attention)
        for index, stage in enumerate(found):
            # A partial of a bound method, which a deep copy binds to the copy.
            stage.register_forward_hook(partial(self._after_stage, index))

    def _after_stage(self, index: int, stage: nn.Module, inputs: Any, feature_BCHW: Tensor) -> Tensor:
        attended: Tensor = self.attention[index](feature_BCHW)
        if self._staged is not None:
            self._staged[index] = attended
        return attended


def assemble(
    encoder: str,
    decoder: str,
    *,
    num_classes: int,
    decoder_width: float = 1.0,
    attention: str = "none",
    context: str = "none",
    heads: tuple[str, ...] = (),
    deep_supervision: bool = False,
) -> Network:
    """Return a network of random weights, in training mode. Never goes online.

    The plain part of the network has the same random weights with and without additions. More than eight parameters:
    each is one choice of how the network is built, under its name in MemberSpec.

    Args:
        encoder: smp's name for it (see backbones.encoder_name).
        decoder: one of DECODERS. decoder_width: of its channels (see decoders.channel_options).
        attention, context, heads: see attention.make_attention, context.make_context, auxiliary.HEADS.
        deep_supervision: whether the decoder's coarser stages predict too (Lee et al. 2015).

    Raises:
        InputError: an unknown name; a pair that does not fit, with the reason, found by sending one small image
            through; deep supervision of a decoder without coarser stages.
    """
    check_decoder(decoder)
    check_attention(attention)
    check_context(context)
    check_heads(heads)
    channels = channel_options(decoder, decoder_width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole: Any = DECODERS[decoder](
                encoder_name=encoder,
                encoder_weights=None,
                classes=num_classes,
                **channels,
                **size_options(encoder),
                **({"num_classes": 0} if is_plain_vit(encoder) else {}),
            )
        network = Network(whole.encoder, whole.decoder, whole.segmentation_head).eval()
        shapes = _fit(network, encoder, decoder)
    except MISFITS as reason:
        raise InputError(
            f"backbone {encoder.removeprefix('tu-')} and decoder {decoder} don't go together: "
            f"{why_not(encoder, decoder, reason)}"
        ) from reason
    deepest, *found, feature = shapes
    network.context = make_context(context, deepest[1])
    coarser = [index for index, shape in enumerate(found) if shape[2] < feature[2]] if deep_supervision else []
    if deep_supervision and not coarser:
        raise InputError(
            f"decoder {decoder} has no stage coarser than its last to supervise; write deep_supervision: 0, or choose "
            "unet, unetplusplus, fpn, upernet or another with several"
        )
    if attention != "none" or coarser:
        network.follow(stages(decoder, network.decoder), [make_attention(attention, shape[1]) for shape in found])
    network.heads.update({name: HEADS[name](feature[1], num_classes) for name in heads})
    network.deep_stages = coarser[::-1]
    network.deep.extend(nn.Conv2d(found[index][1], num_classes, 1) for index in network.deep_stages)
    return network.train()


def _fit(network: Network, encoder: str, decoder: str) -> list[torch.Size]:
    """Find the image sizes that ``network`` takes, and return the shapes of what flows through its decoder.

    Those are: the deepest feature, each stage's output, the decoder's output.
    """
    stride = int(network.encoder.output_stride)  # type: ignore[arg-type]
    multiple = stride * STRIDE_PX // power_of_two(stride) if is_plain_vit(encoder) else STRIDE_PX
    least = MIN_SIDE_PX.get(decoder, multiple)
    own = own_side_px(encoder)
    # Some backbones start without padding and need more than a few pixels; some take multiples of their own side only.
    ways = [(multiple, least, max(2 * multiple, least)), (multiple, 4 * multiple, 4 * multiple)]
    failures: list[Exception] = []
    for multiple_px, min_side_px, side_px in ways + ([(own, own, own)] if own else []):
        try:
            shapes = _shapes(network, decoder, torch.zeros(1, 3, side_px, side_px + multiple_px))
        except MISFITS as failure:
            failures.append(failure)
            continue
        network.multiple_px, network.min_side_px = multiple_px, min_side_px
        return shapes
    raise failures[0]


def _shapes(network: Network, decoder: str, image_BCHW: Tensor) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    hooks = [
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        for stage in (*stages(decoder, network.decoder), network.decoder)
    ]
    hooks.append(network.decoder.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0][-1].shape)))
    try:
        with torch.inference_mode():
            network(image_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
