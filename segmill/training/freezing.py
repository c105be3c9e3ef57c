"""Freezes an encoder at first and unfreezes it stage by stage, the deepest first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import Parameter


def unfrozen_stages(stages: int, epoch: int, *, freeze_epochs: int, unfreeze_epochs: int) -> int:
    """Return how many of an encoder's ``stages``, counted from the deepest, are unfrozen in ``epoch`` (from 0).

    None for ``freeze_epochs``; then one, and more evenly, until all are ``unfreeze_epochs`` later (gradual unfreezing,
    Howard & Ruder 2018).
    """
    since = epoch - freeze_epochs
    if since < 0:
        return 0
    return stages if since >= unfreeze_epochs else 1 + since * (stages - 1) // unfreeze_epochs


def freeze(encoder: nn.Module, stages: Sequence[Sequence[Parameter]], unfrozen: int) -> bool:
    """Unfreeze the deepest ``unfrozen`` of an encoder's ``stages``, freeze the others; return whether that is a change.

    Normalisation in frozen stages keeps its statistics: it is set to evaluation mode, so call this after every
    ``train()``.
    """
    changed = False
    for depth, stage in enumerate(stages):
        learns = depth >= len(stages) - unfrozen
        for parameter in stage:
            changed |= parameter.requires_grad is not learns
            parameter.requires_grad_(learns)
    for part in encoder.modules():
        if (
            isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)
            and part.affine
            and not part.weight.requires_grad
        ):
            part.eval()
    return changed
