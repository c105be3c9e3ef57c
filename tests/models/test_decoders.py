from __future__ import annotations

import pytest
import torch

from segmill.errors import InputError
from segmill.models.decoders import FCNDecoder, channel_options, check_decoder, first_line, power_of_two


def test_fcn_sums_three_scales_coarse_to_fine() -> None:
    decoder = FCNDecoder([4, 6, 8], 16).eval()
    features = [torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6), torch.randn(1, 8, 2, 3)]
    expected = decoder.trunk(features[2])
    for skip, feature in zip(decoder.skips, features[1::-1], strict=True):
        doubled = torch.nn.functional.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
        expected = skip.project(feature) + doubled
    torch.testing.assert_close(decoder(features), expected)
    assert expected.shape == (1, 16, 8, 12)


@pytest.mark.parametrize(("stride", "power"), [(8, 8), (14, 16), (16, 16), (32, 32), (11, 8), (12, 16)])
def test_the_nearest_power_of_two(stride: int, power: int) -> None:
    assert power_of_two(stride) == power


def test_channels_of_a_narrower_decoder() -> None:
    assert channel_options("fpn", 1.0) == {}
    assert channel_options("fpn", 0.5) == {"decoder_pyramid_channels": 128, "decoder_segmentation_channels": 64}
    assert channel_options("fpn", 0.01) == {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
    assert channel_options("unet", 0.6)["decoder_channels"] == (160, 64, 40, 16, 8)
    with pytest.raises(InputError, match="linknet has its backbone's channels; leave decoder_width at 1"):
        channel_options("linknet", 0.5)


def test_unknown_decoder_names_the_near_miss() -> None:
    with pytest.raises(InputError, match=r"unknown decoder unet\+\+; did you mean 'unet'"):
        check_decoder("unet++")


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("no good.\nmore")) == "no good"
    assert first_line(AssertionError()) == "AssertionError"
