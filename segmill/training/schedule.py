"""The learning rate in closed form: a function of how far training is, so that a resumed run has the same values."""

from __future__ import annotations

import math

from torch.optim import Optimizer

SCHEDULES = ("cosine", "poly", "onecycle", "constant")
POLY_POWER = 0.9
WARMUP_SHARE = 0.1  # of a training with a time budget, at most: its epochs may be longer than the budget
CYCLE_START, CYCLE_RISE = 1 / 25, 0.3


def lr_factor(
    kind: str, *, step: int, warmup_steps: int, progress: float, warmed_at: float, budget: bool = False
) -> float:
    """Return the share of the peak learning rate.

    Linear up over the warm-up, which takes at most WARMUP_SHARE of a time ``budget``, then by ``kind``, down to 0 at
    progress 1: ``cosine`` is half a cosine (Loshchilov & Hutter 2017, one cycle), ``poly`` (1 - x)^0.9 (Chen et al.
    2017, DeepLab), and ``constant`` stays at 1. ``onecycle`` (Smith & Topin 2018) has a rise of its own instead of the
    warm-up: half a cosine up from 1/25 over three tenths of the training, then half a cosine down to 0.

    Args:
        kind: one of SCHEDULES.
        step: batches done.
        warmup_steps: batches of the warm-up.
        progress: share of the training that is done, by batches or by time.
        warmed_at: what ``progress`` was when the warm-up ended.
        budget: whether the training has a time budget.
    """
    if kind == "onecycle":
        if progress < CYCLE_RISE:
            return CYCLE_START + (1 - CYCLE_START) * _half_cosine(1 - progress / CYCLE_RISE)
        return _half_cosine((progress - CYCLE_RISE) / (1 - CYCLE_RISE))
    if step < warmup_steps and not (budget and progress >= WARMUP_SHARE):
        risen = (step + 1) / (warmup_steps + 1)
        return max(risen, progress / WARMUP_SHARE) if budget else risen
    if kind == "constant":
        return 1.0
    done = min(1.0, (progress - warmed_at) / (1 - warmed_at)) if warmed_at < 1 else 1.0
    return _half_cosine(done) if kind == "cosine" else (1 - done) ** POLY_POWER


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Give every group its own peak times ``factor``; return the last group's, the decoder's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[-1]["lr"])


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
