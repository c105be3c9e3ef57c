from __future__ import annotations

import pytest
import torch

from segmill.errors import InputError
from segmill.models.decoders import DECODERS, assemble


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_a_small_backbone(decoder: str) -> None:
    net = assemble("tu-mobilenetv3_small_050", decoder, num_classes=3, in_channels=3)
    assert net.training
    with torch.inference_mode():
        assert net.eval()(torch.zeros(1, 3, 128, 160)).shape == (1, 3, 128, 160)


def test_a_transformer_takes_any_size() -> None:
    net = assemble("tu-vit_tiny_patch16_224", "dpt", num_classes=2, in_channels=3)
    with torch.inference_mode():
        assert net.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_unknown_decoder_names_the_near_miss() -> None:
    with pytest.raises(InputError, match=r"unknown decoder unet\+\+; did you mean 'unet'"):
        assemble("tu-resnet18", "unet++", num_classes=2, in_channels=3)


def test_a_pair_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(InputError, match="backbone ghostnet_100 and decoder pan don't go together"):
        assemble("tu-ghostnet_100", "pan", num_classes=2, in_channels=3)
