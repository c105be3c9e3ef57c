"""Gradient checkpointing: the encoder is recomputed in the backward pass instead of stored (Chen et al. 2016)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def set_gradient_checkpointing(encoder: nn.Module, on: bool) -> None:
    """Switch on or off that each block of ``encoder`` stores its input only and recomputes the rest for the gradients.

    Gradients, dropout and normalisation statistics are the same, bit for bit: random numbers repeat, and statistics
    are updated in the first forward pass only. Without gradients nothing is computed twice. An encoder without
    blocks (VGG) is one block. torch.compile leaves blocks uncompiled while it is on.
    """
    for block in blocks(encoder):
        block.__dict__.pop("forward", None)
    if on:
        uncompiled = torch.compiler.disable(_forward)  # type: ignore[no-untyped-call]
        for block in blocks(encoder):
            block.forward = partial(uncompiled, block)


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """Return the blocks that make up most of ``encoder``, or the encoder itself where nothing does."""
    innermost = encoder
    while isinstance(getattr(innermost, "model", None), nn.Module):
        innermost = innermost.model  # type: ignore[assignment]
    found = list(_blocks(innermost))
    inside = sum(parameter.numel() for block in found for parameter in block.parameters())
    return found if 2 * inside > sum(parameter.numel() for parameter in encoder.parameters()) else [encoder]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    lists = (nn.Sequential, nn.ModuleList)
    for child in module.children():
        within = getattr(child, "blocks", None)
        if isinstance(child, lists):
            yield from _blocks(child)
        elif isinstance(within, lists):
            yield from _blocks(within)
        elif any(True for _ in child.children()):
            yield child


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return type(block).forward(block, *args, **kwargs)
    # Lists are copied first: the caller or the block may change them before the second forward pass.
    kept = tuple(list(arg) if isinstance(arg, list) else arg for arg in args)
    return checkpoint(
        partial(_run, block),
        *kept,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _frozen_statistics(block)),
        **kwargs,
    )


def _run(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    fresh = tuple(list(arg) if isinstance(arg, list) else arg for arg in args)
    return type(block).forward(block, *fresh, **kwargs)


@contextlib.contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Let normalisation in ``block`` write its statistics to copies."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm) and module.training
    ]
    kept = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: buffer if buffer is None else buffer.clone() for name, buffer in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers
