"""One training step: forward, backward and, after its last micro-batch, the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segmill.data.loading.batches import Batch
from segmill.training.checkpoint import Training


def train_step(
    training: Training,
    learner: nn.Module,
    batch: Batch,
    *,
    max_grad_norm: float,
    micro_batches: int = 1,
    last: bool = True,
    after: Callable[[str], None] = lambda phase: None,
) -> Tensor:
    """Train with one micro-batch and return its float32 loss, a scalar on the device, not scaled.

    Args:
        training: its optimizer, scaler and average are updated with the last micro-batch of a step.
        learner: objective.Learner of ``training``, images to loss, or its DistributedDataParallel.
        batch: on the device.
        max_grad_norm: a larger gradient is scaled down to it; 0 is off.
        micro_batches: how many make the step: each adds its share of the gradient.
        last: whether this is the last of them. Only then do ranks share gradients.
        after: called with ``backward``, ``optimizer`` and ``average`` when each is done.
    """
    with contextlib.nullcontext() if last else without_sharing(learner):
        loss: Tensor = learner(*batch)
        training.scaler.scale(loss / micro_batches).backward()  # type: ignore[no-untyped-call]
    after("backward")
    if last:
        if max_grad_norm:
            training.scaler.unscale_(training.optimizer)
            nn.utils.clip_grad_norm_(learner.parameters(), max_grad_norm)
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad(set_to_none=True)
        after("optimizer")
        if training.average:
            training.average.update(training.module)
        after("average")
    return loss.detach()


def without_sharing(learner: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a backward pass only adds to this rank's own gradients."""
    if not isinstance(learner, DistributedDataParallel):
        return contextlib.nullcontext()
    apart: contextlib.AbstractContextManager[None] = learner.no_sync()
    return apart
