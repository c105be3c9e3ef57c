"""Global context at the deepest feature: attention over all places, or recurrent sweeps of rows and columns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmill.errors import InputError, near_miss

# All of them work on this many channels at most, whatever the backbone's, so that they stay small compared with it.
WIDTH = 256
HEAD_CHANNELS = 32


class Context(nn.Module):
    """feature_BCHW plus the global context that ``look`` computes for each place, at the same shape.

    A scale per channel starts at zero (as in Fu et al. 2019), so training starts from the plain network.
    """

    def __init__(self, channels: int, look: Callable[[int], nn.Module]):
        super().__init__()
        heads = max(1, min(WIDTH, channels // 2) // HEAD_CHANNELS)
        width = heads * HEAD_CHANNELS
        self.reduce = nn.Conv2d(channels, width, 1)
        self.look = look(width)
        self.expand = nn.Conv2d(width, channels, 1)
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        seen = self.expand(self.look(self.reduce(feature_BCHW)))
        result: Tensor = feature_BCHW + (self.scale.view(1, -1, 1, 1) * seen).to(feature_BCHW.dtype)
        return result


class NonLocal(nn.Module):
    """The mean of all places, weighted by similarity (Wang et al. 2018, embedded Gaussian).

    Scaled as by Vaswani et al. (2017), which the fused kernels of torch compute without the matrix of all pairs.
    """

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Conv2d(width, 3 * width, 1)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        query, key, value = (
            part.flatten(2).transpose(1, 2).unsqueeze(1) for part in self.project(feature_BCHW).chunk(3, dim=1)
        )
        mixed_BNC = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return mixed_BNC.transpose(1, 2).reshape(feature_BCHW.shape)


class SelfAttention(nn.Module):
    """One layer of a transformer's encoder over all places (Vaswani et al. 2017): several heads, then a small MLP.

    A depthwise convolution encodes the position (Chu et al. 2021), at any size.
    """

    def __init__(self, width: int):
        super().__init__()
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.layer = nn.TransformerEncoderLayer(
            width,
            width // HEAD_CHANNELS,
            dim_feedforward=2 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        placed_BCHW = feature_BCHW + self.position(feature_BCHW)
        mixed_BNC: Tensor = self.layer(placed_BCHW.flatten(2).transpose(1, 2))
        return mixed_BNC.transpose(1, 2).reshape(feature_BCHW.shape)


class Sweep(nn.Module):
    """A recurrent network along each row, both ways, then along each column of that (ReNet, Visin et al. 2015).

    In fp32 whatever the autocast type, as errors would add up along a sweep. Memory grows with the number of places,
    not with that of their pairs.
    """

    def __init__(self, width: int, cell: type[nn.GRU] | type[nn.LSTM]):
        super().__init__()
        self.rows = cell(width, width // 2, batch_first=True, bidirectional=True)
        self.columns = cell(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        images, channels, height, width = feature_BCHW.shape
        with torch.autocast(feature_BCHW.device.type, enabled=False):
            rows = feature_BCHW.float().permute(0, 2, 3, 1).reshape(images * height, width, channels)
            by_rows_BHWC: Tensor = self.rows(rows)[0].view(images, height, width, channels)
            columns = by_rows_BHWC.transpose(1, 2).reshape(images * width, height, channels)
            by_columns_BWHC: Tensor = self.columns(columns)[0].view(images, width, height, channels)
        return by_columns_BWHC.permute(0, 3, 2, 1)


CONTEXTS: dict[str, Callable[[int], nn.Module]] = {
    "nonlocal": NonLocal,
    "selfattention": SelfAttention,
    "gru": lambda width: Sweep(width, nn.GRU),
    "lstm": lambda width: Sweep(width, nn.LSTM),
}


def check_context(name: str) -> None:
    """Raise InputError, with the near miss, where ``name`` is neither ``none`` nor one of CONTEXTS."""
    allowed = ["none", *CONTEXTS]
    if name not in allowed:
        raise InputError(f"unknown context {name}{near_miss(name, allowed)} ({', '.join(allowed)})")


def make_context(name: str, channels: int) -> nn.Module:
    """Return a module from feature_BCHW of ``channels`` channels to the same shape; ``none`` changes nothing.

    Raises InputError for an unknown name.
    """
    check_context(name)
    return nn.Identity() if name == "none" else Context(channels, CONTEXTS[name])
