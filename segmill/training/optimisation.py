"""How weights move: AdamW with its own pace for the encoder, warm-up and cosine, and a moving average."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from segmill.models.members import MemberModule


def make_optimizer(module: MemberModule, *, lr: float, encoder_lr_factor: float, weight_decay: float) -> AdamW:
    """Return AdamW (Loshchilov & Hutter 2019); the encoder learns at ``lr * encoder_lr_factor``.

    Biases and the scales of normalisation (tensors of one axis) are not decayed.
    """
    groups = []
    for in_encoder, factor in ((True, encoder_lr_factor), (False, 1.0)):
        for decayed in (True, False):
            params = [
                parameter
                for name, parameter in module.net.named_parameters()
                if name.startswith("encoder.") == in_encoder and (parameter.ndim > 1) == decayed
            ]
            if params:
                groups.append({"params": params, "lr": lr * factor, "weight_decay": weight_decay * decayed})
    return AdamW(groups, lr=lr, fused=True)


def lr_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the share of the peak learning rate at ``step`` (from 0): linear up, half a cosine down to 0.

    In closed form (Loshchilov & Hutter 2017, one cycle), so that a resumed run meets the very same values.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_schedule(optimizer: Optimizer, *, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Return the schedule of lr_factor, to be stepped after every optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, warmup_steps=warmup_steps, total_steps=total_steps))


class MovingAverage:
    """An exponential moving average of a module's weights and normalisation statistics.

    ``decay`` is the share of the old average kept per step; early on it is less, (1 + n) / (10 + n) after n
    updates, so that the random start is soon forgotten.
    """

    def __init__(self, module: MemberModule, decay: float):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards ``module``; counters (integer tensors) are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        old: list[Tensor] = []
        new: list[Tensor] = []
        for mine, theirs in zip(self.module.state_dict().values(), module.state_dict().values(), strict=True):
            if mine.is_floating_point():
                old.append(mine)
                new.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(old, new, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
