from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from segmentation_models_pytorch.encoders._efficientnet import Conv2dStaticSamePadding
from timm.layers import Conv2dSame
from torch import Tensor, nn

from segmill.models.depthwise import QUICK, quicken_depthwise

CHANNELS = 8
# kernel, stride, padding, dilation: what is slow without help, and combinations of it.
CASES = [
    (5, 1, 2, 1), (7, 1, 3, 1), (4, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (5, 2, 2, 1), (5, 3, 1, 1), (1, 2, 0, 1),
    (3, 1, 2, 2), (3, 1, 6, 6), (3, 2, 2, 2), (5, 2, 4, 2), ((1, 7), 1, (0, 3), 1), ((7, 1), 2, (3, 0), 1),
    (2, 2, 0, 1),
]  # fmt: skip


def grads(conv: nn.Conv2d, image: Tensor, toward: Tensor) -> tuple[Tensor, ...]:
    image = image.clone().requires_grad_()
    output = conv(image)
    parameters = list(conv.parameters())
    return (output.detach(), *torch.autograd.grad((output * toward).sum(), [image, *parameters]))


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), CASES)
@pytest.mark.parametrize("size", [(17, 23), (18, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_float64(
    kernel: int, stride: int, padding: int, dilation: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups=CHANNELS).to(dtype)
    image = torch.randn(2, CHANNELS, *size).to(dtype).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(conv)
    quicken_depthwise(conv)
    assert type(conv) is QUICK[nn.Conv2d]
    toward = torch.randn(plain(image).shape).to(dtype)
    mine = grads(conv, image, toward)
    assert torch.equal(mine[0], plain(image))
    exact = grads(plain.double(), image.double(), toward.double())
    for one, other in zip(mine, exact, strict=True):
        bound = (1e-5 if dtype == torch.float32 else 2e-2) * float(other.abs().max())
        assert one.dtype == dtype and one.shape == other.shape
        assert float((one.double() - other).abs().max()) < bound


@pytest.mark.parametrize("kind", [Conv2dSame, Conv2dStaticSamePadding])
@pytest.mark.parametrize(("kernel", "stride"), list(product([3, 5], [1, 2])))
def test_convolutions_that_pad_themselves(kind: type[nn.Conv2d], kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    how = {"image_size": (19, 22)} if kind is Conv2dStaticSamePadding else {}
    conv = kind(CHANNELS, CHANNELS, kernel, stride=stride, groups=CHANNELS, bias=False, **how)
    plain, image = copy.deepcopy(conv), torch.randn(2, CHANNELS, 19, 22)
    quicken_depthwise(conv)
    assert (type(conv) is kind) == (kernel == 3 and stride == 1)
    toward = torch.randn(plain(image).shape)
    for one, other in zip(grads(conv, image, toward), grads(plain, image, toward), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_under_autocast_the_weights_get_float32_gradients() -> None:
    conv = nn.Conv2d(CHANNELS, CHANNELS, 5, 2, 2, groups=CHANNELS)
    plain, image = copy.deepcopy(conv), torch.randn(2, CHANNELS, 16, 16)
    quicken_depthwise(conv)
    for one, other in zip(*(_step(each, image) for each in (conv, plain)), strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


def _step(conv: nn.Conv2d, image: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = conv(image)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    return [parameter.grad for parameter in conv.parameters() if parameter.grad is not None]


def test_only_what_is_slow_changes_and_no_name_does() -> None:
    net = nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
        nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, groups=2),
        nn.Conv2d(CHANNELS, CHANNELS, 5, padding="same", groups=CHANNELS),
        nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, groups=CHANNELS),
    )
    names, before = list(net.state_dict()), [id(parameter) for parameter in net.parameters()]
    quicken_depthwise(net)
    assert [type(part) is nn.Conv2d for part in net] == [True, True, True, True, False]
    assert list(net.state_dict()) == names and [id(parameter) for parameter in net.parameters()] == before
    torch.testing.assert_close(copy.deepcopy(net)(torch.ones(1, CHANNELS, 8, 8)), net(torch.ones(1, CHANNELS, 8, 8)))


def test_a_frozen_kernel_still_passes_the_gradient_on() -> None:
    conv = nn.Conv2d(CHANNELS, CHANNELS, 5, 2, 2, groups=CHANNELS).requires_grad_(False)
    plain, image = copy.deepcopy(conv), torch.randn(1, CHANNELS, 9, 9)
    quicken_depthwise(conv)
    mine, theirs = (torch.autograd.grad(each(at).sum(), at)[0] for each in (conv, plain)
                    for at in [image.clone().requires_grad_()])  # fmt: skip
    torch.testing.assert_close(mine, theirs)
