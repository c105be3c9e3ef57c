"""The straight loop: epochs, validation, the best weights; on one rank or many. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from segmill.data.dataset import EvalSamples, TrainBatches
from segmill.data.packing import PackedSplit
from segmill.enhancement import enhance_all
from segmill.errors import SegmillError
from segmill.metrics import scores
from segmill.models.members import MemberModule
from segmill.models.precision import autocast, autocast_dtype
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.losses import segmentation_loss
from segmill.training.optimisation import MovingAverage, make_optimizer, make_schedule

VAL_BATCH = 8
CHECK_EVERY = 50  # steps between two looks at the losses: each look waits for the device


class MemberFailed(SegmillError):
    """A member's training went where no further step can save it."""


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know; every value stands in params.yaml under the same name, but the ids."""

    member: str
    epochs: int
    lr: float
    encoder_lr_factor: float
    weight_decay: float
    warmup_epochs: float
    dice_weight: float
    ema: float
    precision: str
    val_every: int
    seed: int
    num_classes: int
    ignore_id: int
    grayscale: bool = False
    clahe: float = 0.0


@dataclass(frozen=True)
class Step:
    """Where training is: ``epoch`` and ``step`` count from 1; ``images_s`` over all ranks, this epoch."""

    epoch: int
    step: int
    steps: int
    loss: Tensor
    images_s: float
    seconds_left: float


@dataclass(frozen=True)
class Rank:
    """This process among those that train the member together."""

    index: int = 0
    count: int = 1


def train_member(
    module: MemberModule,
    batches: TrainBatches,
    val: PackedSplit,
    settings: Settings,
    *,
    device: torch.device,
    rank: Rank,
    class_weights: Tensor | None = None,
    resume_from: Path | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Training], None] = lambda training: None,
) -> Training:
    """Train ``module`` and return the final state, with the best weights by val mIoU in it.

    Args:
        module: the same random or pretrained weights on every rank; moved to ``device``.
        batches: this rank's part of each global batch, a function of (seed, epoch).
        val: scored at original size every ``val_every`` epochs and after the last.
        resume_from: folder of a checkpoint written by an earlier on_epoch.
        on_step: called after each step; reading its loss waits for the device, so read it seldom.
        on_epoch: called on every rank after each epoch.

    Raises:
        MemberFailed: the loss is not finite.
    """
    dtype = autocast_dtype(settings.precision, device)
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(
        module,
        lr=settings.lr,
        encoder_lr_factor=settings.encoder_lr_factor,
        weight_decay=settings.weight_decay,
    )
    steps = batches.steps_per_epoch
    schedule = make_schedule(
        optimizer, warmup_steps=round(settings.warmup_epochs * steps), total_steps=settings.epochs * steps
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    average = MovingAverage(module, settings.ema) if settings.ema else None
    training = Training(module, optimizer, schedule, scaler, average)
    if resume_from:
        checkpoint.load(training, resume_from)
    # A static graph lets a backbone have stages that its decoder does not use.
    ranked = DistributedDataParallel(module, static_graph=True) if rank.count > 1 else module
    clock = _Clock(settings.epochs, training.epochs_done)

    for epoch in range(training.epochs_done, settings.epochs):
        seed_epoch(settings.seed, epoch, rank.index)
        module.train()
        losses: list[Tensor] = []
        clock.start_epoch()
        for image_BHWC, mask_BHW in batches.epoch(epoch):
            with autocast(dtype, device):
                logits_BKHW = ranked(image_BHWC.to(device, non_blocking=True))
            loss = segmentation_loss(
                logits_BKHW,
                mask_BHW.to(device, non_blocking=True),
                ignore_id=settings.ignore_id,
                class_weights=class_weights,
                dice_weight=settings.dice_weight,
            )
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            if average:
                average.update(module)
            losses.append(loss.detach())
            clock.count(len(image_BHWC) * rank.count)
            left = clock.seconds_left(epoch + len(losses) / steps)
            on_step(Step(epoch + 1, len(losses), steps, losses[-1], clock.images_s, left))
            if len(losses) % CHECK_EVERY == 0 or len(losses) == steps:
                check_finite(settings, epoch, losses, optimizer)
        images_s = clock.images_s

        miou = None
        if (epoch + 1) % settings.val_every == 0 or epoch + 1 == settings.epochs:
            judged = average.module if average else module
            share_statistics(judged, rank)
            counts = validate(judged, val, settings, device=device, rank=rank, dtype=dtype)
            miou = scores.miou(counts)
            if miou > training.best_miou or not training.best_weights:
                training.best_miou, training.best_epoch = miou, epoch + 1
                training.best_weights = {name: t.detach().cpu().clone() for name, t in judged.state_dict().items()}

        training.epochs_done = epoch + 1
        training.curves.append(
            {
                "epoch": epoch + 1,
                "loss": float(torch.stack(losses).mean()),
                "val_miou": miou,
                "lr": optimizer.param_groups[-1]["lr"],
                "images_s": images_s,
                "seconds": clock.epoch_seconds,
                "seconds_left": clock.seconds_left(epoch + 1),
            }
        )
        on_epoch(training)
    return training


def validate(
    module: MemberModule,
    val: PackedSplit,
    settings: Settings,
    *,
    device: torch.device,
    rank: Rank,
    dtype: torch.dtype | None,
) -> NDArray[np.int64]:
    """Return the K x K counts (row truth) of all ranks together: each val image once, at original size.

    The images lie there as they came, so they are enhanced here, as ``Member.predict_probs`` does.
    """
    module.eval()
    classes = settings.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    with torch.inference_mode():
        for _, images_BHWC, masks_BHW in EvalSamples(val, rank=rank.index, world_size=rank.count).batches(VAL_BATCH):
            seen_BHWC = enhance_all(images_BHWC, grayscale=settings.grayscale, clahe=settings.clahe)
            with autocast(dtype, device):
                logits_BKHW = module(torch.from_numpy(seen_BHWC).to(device))
            truth_BHW = torch.from_numpy(masks_BHW).to(device).long()
            labelled_BHW = truth_BHW != settings.ignore_id
            cells = (truth_BHW * classes + logits_BKHW.argmax(dim=1))[labelled_BHW]
            counts += torch.bincount(cells, minlength=classes * classes)
    if rank.count > 1:
        distributed.all_reduce(counts)
    return counts.cpu().numpy().reshape(classes, classes)


def share_statistics(module: MemberModule, rank: Rank) -> None:
    """Average normalisation's running statistics over the ranks, so that all judge and keep one model."""
    if rank.count > 1:
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                distributed.all_reduce(buffer)
                buffer /= rank.count


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed what is random inside the network (dropout) from (seed, epoch, rank): no generator to save."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def check_finite(settings: Settings, epoch: int, losses: list[Tensor], optimizer: Optimizer) -> None:
    """Raise MemberFailed naming the first step of ``epoch`` (from 0) whose loss is not finite."""
    values = torch.stack(losses).cpu()
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise MemberFailed(
            f"member {settings.member}: the loss is {values[step].item()} at epoch {epoch + 1}, "
            f"step {step + 1} (learning rate {optimizer.param_groups[-1]['lr']:.3g}); "
            f"lower members.{settings.member}.lr or lengthen train.warmup_epochs"
        )


class _Clock:
    """Images per second of this epoch's training, and the seconds that are left at the pace so far."""

    def __init__(self, epochs: int, first_epoch: int):
        self._epochs, self._first = epochs, first_epoch
        self._began = time.perf_counter()

    def start_epoch(self) -> None:
        self._epoch_began = time.perf_counter()
        self._images = 0

    def count(self, images: int) -> None:
        self._images += images

    @property
    def epoch_seconds(self) -> float:
        return time.perf_counter() - self._epoch_began

    @property
    def images_s(self) -> float:
        return self._images / max(self.epoch_seconds, 1e-9)

    def seconds_left(self, epochs_done: float) -> float:
        pace = (time.perf_counter() - self._began) / max(epochs_done - self._first, 1e-9)
        return pace * (self._epochs - epochs_done)
