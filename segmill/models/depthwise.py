"""Depthwise convolutions with fast gradients on a CPU.

oneDNN, which PyTorch uses on CPUs, has no fast code for some of them: gradients of kernels wider than 3,
of dilated ones and, in bf16, of strided ones took 5 to 80 times what the convolution itself takes (torch 2.14). Each
is rewritten as the same sum in convolutions that are fast.
"""

from __future__ import annotations

from typing import Any

import torch
from segmentation_models_pytorch.encoders._efficientnet import Conv2dStaticSamePadding
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUICK_WIDTH = 3

Pair = tuple[int, int]


def quicken_depthwise(net: nn.Module) -> None:
    """Give the depthwise convolutions inside ``net`` faster gradients on a CPU.

    Names, parameters and the function stay the same. The forward result is equal bit for bit, gradients may differ in
    the last bit.
    """
    for part in net.modules():
        quick = QUICK.get(type(part))
        if quick and isinstance(part, nn.Conv2d) and _is_slow(part):
            part.__class__ = quick


def _is_slow(part: nn.Conv2d) -> bool:
    alone = part.groups == part.in_channels == part.out_channels > 1
    plain = part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return alone and plain and (part.kernel_size[1] > QUICK_WIDTH or max(*part.stride, *part.dilation) > 1)


class _Depthwise(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.device.type != "cpu" or not torch.is_grad_enabled():
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight, bias = input.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
        output: Tensor = _Convolution.apply(input, weight, bias, self.stride, self.padding, self.dilation)
        return output


class _DepthwiseOfTimm(_Depthwise, Conv2dSame):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        padded = pad_same(input, self.weight.shape[-2:], self.stride, self.dilation)
        return self._conv_forward(padded, self.weight, self.bias)


class _DepthwiseOfSmp(_Depthwise, Conv2dStaticSamePadding):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        padded: Tensor = self.static_padding(input)  # type: ignore[operator]
        return self._conv_forward(padded, self.weight, self.bias)


QUICK: dict[type, type] = {
    nn.Conv2d: _Depthwise,
    Conv2dSame: _DepthwiseOfTimm,
    Conv2dStaticSamePadding: _DepthwiseOfSmp,
}


class _Convolution(torch.autograd.Function):
    """A depthwise convolution: x_BCHW, weight_C1UV and bias_C or None to y_BChw."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        ctx.how = stride, padding, dilation
        return F.conv2d(x_BCHW, weight, bias, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BChw: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        grad_BChw = grad_BChw.contiguous(memory_format=torch.channels_last)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        return (
            _grad_of_x(grad_BChw, x_BCHW, weight, *ctx.how) if needs_x else None,
            _grad_of_weight(grad_BChw, x_BCHW, weight, *ctx.how) if needs_weight else None,
            grad_BChw.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
            None,
        )


def _grad_of_x(
    grad_BChw: Tensor, x_BCHW: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Convolve the gradient, its pixels moved ``stride`` apart with zeros between, with the turned kernel."""
    reach = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
    around = [far - before for far, before in zip(reach, padding, strict=True)]
    strided = max(stride) > 1
    quick = max(dilation) == 1 and (not strided or x_BCHW.dtype == torch.float32)
    if quick or min(around) < 0:
        return _backward(grad_BChw, x_BCHW, weight, stride, padding, dilation, of_x=True)
    spread = grad_BChw
    if strided:
        height, width = (
            side + far - 2 * margin for side, far, margin in zip(x_BCHW.shape[2:], reach, around, strict=True)
        )
        spread = torch.empty(
            *x_BCHW.shape[:2], height, width, dtype=grad_BChw.dtype, memory_format=torch.channels_last
        ).zero_()
        rows, columns = ((side - 1) * step + 1 for side, step in zip(grad_BChw.shape[2:], stride, strict=True))
        spread[:, :, : rows : stride[0], : columns : stride[1]] = grad_BChw
    return F.conv2d(spread, weight.flip(2, 3), None, 1, around, dilation, len(weight))


def _grad_of_weight(
    grad_BChw: Tensor, x_BCHW: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Take the kernel apart: strips of QUICK_WIDTH columns, or single weights where it is dilated."""
    high, wide = weight.shape[2:]
    dilated = max(dilation) > 1
    if not dilated and wide <= QUICK_WIDTH:
        return _backward(grad_BChw, x_BCHW, weight, stride, padding, dilation, of_x=False)
    padded_BCHW = F.pad(x_BCHW, (padding[1], padding[1], padding[0], padding[0]))
    strip_high, strip_wide = (1, 1) if dilated else (high, QUICK_WIDTH)
    height = (grad_BChw.shape[2] - 1) * stride[0] + strip_high
    width = (grad_BChw.shape[3] - 1) * stride[1] + strip_wide
    grad = torch.empty_like(weight)
    for top in range(0, high, strip_high):
        for left in (min(left, wide - strip_wide) for left in range(0, wide, strip_wide)):
            y, x = top * dilation[0], left * dilation[1]
            seen_BCHW = padded_BCHW[:, :, y : y + height, x : x + width].contiguous(memory_format=torch.channels_last)
            rows, columns = slice(top, top + strip_high), slice(left, left + strip_wide)
            grad[:, :, rows, columns] = _backward(
                grad_BChw, seen_BCHW, weight[:, :, rows, columns], stride, (0, 0), (1, 1), of_x=False
            )
    return grad


def _backward(
    grad_BChw: Tensor, x_BCHW: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, *, of_x: bool
) -> Tensor:
    """Return PyTorch's own gradient of x, or of the weight."""
    grads = torch.ops.aten.convolution_backward(
        grad_BChw, x_BCHW, weight, None, stride, padding, dilation, False, (0, 0), len(weight), (of_x, not of_x, False)
    )
    grad: Tensor = grads[0 if of_x else 1]
    return grad
