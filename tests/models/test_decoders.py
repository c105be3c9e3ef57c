from __future__ import annotations

import pytest
import torch

from segmill.errors import InputError
from segmill.models.decoders import FCN_WIDTH, FCNDecoder, check_decoder, first_line, power_of_two


def test_fcn_sums_three_scales_coarse_to_fine() -> None:
    decoder = FCNDecoder([4, 6, 8]).eval()
    features = [torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6), torch.randn(1, 8, 2, 3)]
    expected = decoder.trunk(features[2])
    for skip, feature in zip(decoder.skips, features[1::-1], strict=True):
        doubled = torch.nn.functional.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
        expected = skip.project(feature) + doubled
    torch.testing.assert_close(decoder(features), expected)
    assert expected.shape == (1, FCN_WIDTH, 8, 12)


@pytest.mark.parametrize(("stride", "power"), [(8, 8), (14, 16), (16, 16), (32, 32), (11, 8), (12, 16)])
def test_the_nearest_power_of_two(stride: int, power: int) -> None:
    assert power_of_two(stride) == power


def test_unknown_decoder_names_the_near_miss() -> None:
    with pytest.raises(InputError, match=r"unknown decoder unet\+\+; did you mean 'unet'"):
        check_decoder("unet++")


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("no good.\nmore")) == "no good"
    assert first_line(AssertionError()) == "AssertionError"
