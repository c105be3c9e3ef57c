"""Checks the losses of an epoch: one that is not finite ends the training, and its batch is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

from segmill.data.loading.batches import TrainBatches
from segmill.errors import SegmillError
from segmill.training.clock import Rank

CHECK_EVERY = 50  # steps between two checks of the losses: each waits for the device


class MemberFailed(SegmillError):
    """A member's training failed in a way that more steps can't repair."""


class LossWatch:
    """Keeps the losses of one epoch (from 0) on the device.

    Args:
        member: its name, for the sentence.
        batches: what the losses are of; the offending batch is made again from them.
        keep_at: the .npz that the offending batch goes to; None keeps nothing.
    """

    def __init__(self, member: str, batches: TrainBatches, epoch: int, rank: Rank, keep_at: Path | None):
        self._member, self._batches, self._epoch, self._rank, self._keep_at = member, batches, epoch, rank, keep_at
        self._losses: list[Tensor] = []
        self._rates: list[float] = []

    def note(self, loss: Tensor, lr: float) -> None:
        """Take one more loss and the decoder's learning rate; every CHECK_EVERY of them are checked."""
        self._losses.append(loss)
        self._rates.append(lr)
        if len(self._losses) % CHECK_EVERY == 0:
            self.check()

    def mean(self) -> float:
        """Return the mean loss of the epoch, all of it checked.

        Raises MemberFailed as ``check`` does.
        """
        if len(self._losses) % CHECK_EVERY:
            self.check()
        return float(torch.stack(self._losses).mean())

    def check(self) -> None:
        """Raise MemberFailed, on every rank, with the first step at which any rank's loss was not finite."""
        values = torch.stack(self._losses)
        steps = len(values)
        bad = (~values.isfinite()).long()
        first = torch.where(bad.any(), bad.argmax(), steps) * self._rank.count + self._rank.index
        if self._rank.count > 1:
            distributed.all_reduce(first, distributed.ReduceOp.MIN)
        step, culprit = divmod(int(first), self._rank.count)
        if step == steps:
            return
        said = f"{float(values[step])}" if culprit == self._rank.index else "not finite"
        if culprit == self._rank.index and self._keep_at:
            self._keep(step, self._keep_at)
        if self._rank.count > 1:
            distributed.barrier()
        kept = f"; its batch is saved in {self._keep_at}" if self._keep_at else ""
        raise MemberFailed(
            f"member {self._member}: the loss is {said} at epoch {self._epoch + 1}, step {step + 1} "
            f"(learning rate {self._rates[step]:.3g}){kept}; lower members.{self._member}.lr, lengthen "
            "train.warmup_epochs or set train.max_grad_norm to 1"
        )

    def _keep(self, step: int, path: Path) -> None:
        ids, batch = self._batches.batch(self._epoch, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            ids=np.array(ids),
            image_BHWC=batch.image.numpy(),
            mask_BHW=batch.mask.numpy(),
            lr=self._rates[step],
            epoch=self._epoch + 1,
            step=step + 1,
        )
