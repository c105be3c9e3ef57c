from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segmill.errors import InputError
from segmill.models.context import CONTEXTS, NonLocal, Sweep, make_context


@pytest.fixture
def feature_BCHW() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 96, 4, 6)


@pytest.mark.parametrize("name", CONTEXTS)
def test_training_sets_out_from_the_plain_network(name: str, feature_BCHW: Tensor) -> None:
    context = make_context(name, 96)
    result = context(feature_BCHW)
    assert torch.equal(result, feature_BCHW)
    result.square().sum().backward()
    assert context.scale.grad is not None and context.scale.grad.abs().min() > 0


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_place_sees_every_other(name: str, feature_BCHW: Tensor) -> None:
    context = make_context(name, 96)
    torch.nn.init.ones_(context.scale)
    feature_BCHW.requires_grad_(True)
    context(feature_BCHW)[0, :, 0, 0].square().sum().backward()
    assert feature_BCHW.grad is not None
    seen_HW = feature_BCHW.grad[0].abs().sum(0)
    assert (seen_HW > 0).all()
    assert not feature_BCHW.grad[1].any()


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("channels", [24, 1280])
def test_any_number_of_channels_in_any_type(name: str, channels: int) -> None:
    context = make_context(name, channels)
    torch.nn.init.ones_(context.scale)
    feature_BCHW = torch.randn(1, channels, 2, 3).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        result = context(feature_BCHW)
    assert result.shape == feature_BCHW.shape and result.dtype is torch.bfloat16
    assert not torch.equal(result, feature_BCHW)


def test_nonlocal_is_the_mean_weighted_by_likeness(feature_BCHW: Tensor) -> None:
    context = NonLocal(96)
    query, key, value = context.project(feature_BCHW).flatten(2).chunk(3, dim=1)
    likeness_BNN = (query.transpose(1, 2) @ key / 96**0.5).softmax(dim=-1)
    expected = (likeness_BNN @ value.transpose(1, 2)).transpose(1, 2).reshape(2, 96, 4, 6)
    torch.testing.assert_close(context(feature_BCHW), expected)


@pytest.mark.parametrize("cell", [torch.nn.GRU, torch.nn.LSTM])
def test_a_sweep_goes_along_rows_then_columns(cell: type[torch.nn.GRU], feature_BCHW: Tensor) -> None:
    sweep = Sweep(96, cell)
    expected = torch.empty_like(feature_BCHW)
    for image in range(2):
        rows_HWC = torch.stack([sweep.rows(feature_BCHW[image, :, row].T)[0] for row in range(4)])
        for column in range(6):
            expected[image, :, :, column] = sweep.columns(rows_HWC[:, column])[0].T
    torch.testing.assert_close(sweep(feature_BCHW), expected)


def test_unknown_context_names_the_near_miss() -> None:
    with pytest.raises(InputError, match=r"unknown context ltsm; did you mean 'lstm'\? \(none, nonlocal, "):
        make_context("ltsm", 8)
