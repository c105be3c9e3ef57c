from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segmill.errors import InputError
from segmill.models.attention import ATTENTIONS, make_attention

CHANNELS = 32


@pytest.fixture
def feature_BCHW() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, CHANNELS, 5, 7)


def two_layers(first: nn.Module, second: nn.Module, pooled_BC11: Tensor) -> Tensor:
    return second(first(pooled_BC11).relu())


def test_se_weighs_channels_by_their_means(feature_BCHW: Tensor) -> None:
    attention = make_attention("se", CHANNELS)
    mean = feature_BCHW.mean((2, 3), keepdim=True)
    expected = feature_BCHW * two_layers(attention.fc1, attention.fc2, mean).sigmoid()
    torch.testing.assert_close(attention(feature_BCHW), expected)
    assert attention.fc1.weight.shape == (2, CHANNELS, 1, 1)


def test_scse_adds_what_weighs_places(feature_BCHW: Tensor) -> None:
    attention = make_attention("scse", CHANNELS)
    mean = feature_BCHW.mean((2, 3), keepdim=True)
    channels = two_layers(attention.cSE[1], attention.cSE[3], mean).sigmoid()
    places = attention.sSE[0](feature_BCHW).sigmoid()
    torch.testing.assert_close(attention(feature_BCHW), feature_BCHW * channels + feature_BCHW * places)
    assert places.shape == (2, 1, 5, 7)


def test_cbam_weighs_channels_then_places_by_mean_and_maximum(feature_BCHW: Tensor) -> None:
    attention = make_attention("cbam", CHANNELS).eval()
    layers = attention.channel.fc1, attention.channel.fc2
    mean, most = feature_BCHW.mean((2, 3), keepdim=True), feature_BCHW.amax((2, 3), keepdim=True)
    first = feature_BCHW * (two_layers(*layers, mean) + two_layers(*layers, most)).sigmoid()
    places = attention.spatial.conv(torch.cat([first.mean(1, True), first.amax(1, True)], 1)).sigmoid()
    torch.testing.assert_close(attention(feature_BCHW), first * places)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_few_channels_are_enough(name: str, channels: int) -> None:
    assert make_attention(name, channels)(torch.randn(2, channels, 4, 4)).shape == (2, channels, 4, 4)


def test_unknown_attention_names_the_near_miss() -> None:
    with pytest.raises(InputError, match=r"unknown attention cbma; did you mean 'cbam'\? \(none, se, scse, cbam\)"):
        make_attention("cbma", 8)
