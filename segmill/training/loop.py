"""The straight loop: epochs, validation, the best weights; on one rank or many. Knows nothing of Ray."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segmill.data.loading.batches import TrainBatches
from segmill.data.packing.packed import PackedSplit
from segmill.metrics import scores
from segmill.models.depthwise import quicken_depthwise
from segmill.models.members import MemberModule
from segmill.models.precision import autocast_dtype
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.clock import Clock, Rank
from segmill.training.finite import LossWatch
from segmill.training.freezing import freeze, unfrozen_stages
from segmill.training.objective import Learner, Objective
from segmill.training.optimisation import MovingAverage, make_optimizer
from segmill.training.prefetch import on_device
from segmill.training.schedule import WARMUP_SHARE, lr_factor, set_lr
from segmill.training.settings import Settings
from segmill.training.step import train_step
from segmill.training.validation import share_statistics, validate


@dataclass(frozen=True)
class Step:
    """Where training is: ``epoch`` and ``step`` count from 1; ``images_s`` over all ranks, this epoch.

    ``progress`` is the share that is done, of all batches or of the time budget.
    """

    epoch: int
    step: int
    steps: int
    loss: Tensor
    images_s: float
    seconds_left: float
    progress: float


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
    keep_failure_at: Path | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Training], None] = lambda training: None,
) -> Training:
    """Train ``module`` and return the final state, with the best weights by val mIoU in it.

    It ends after ``epochs``, after the step that uses up ``max_minutes``, or after ``early_stopping_patience``
    validation runs without a new best, whichever comes first, and always with a validation run.
    More than eight parameters: what is trained and where, and four independent options of a run.

    Args:
        module: the same random or pretrained weights on every rank; moved to ``device``.
        batches: this rank's part of each global batch, a function of (seed, epoch); with the distances of
            targets.SignedDistances where ``needs_distances`` says so.
        val: scored at original size every ``val_every`` epochs and after the last.
        class_weights: K floats for the losses of pixels.
        resume_from: folder of a checkpoint written by an earlier on_epoch.
        keep_failure_at: the .npz for the batch whose loss is not finite.
        on_step: called after each batch; reading its loss waits for the device, so read it seldom.
        on_epoch: called on every rank after each epoch.

    Raises:
        InputError: an unknown optimizer, loss or head; or a checkpoint that is damaged.
        MemberFailed: the loss is not finite.
    """
    dtype = autocast_dtype(settings.precision, device)
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    quicken_depthwise(module)
    stages = module.encoder_stages()
    module.set_gradient_checkpointing(settings.gradient_checkpointing)
    training = begin(module, stages, settings, class_weights, device, dtype)
    if resume_from:
        checkpoint.load(training, resume_from)
    learner = Learner(module, training.objective, dtype)
    if settings.compile == "on":  # not the module itself: validation stays uncompiled
        learner.compile(dynamic=False)
    training.steps_per_epoch = steps = batches.steps_per_epoch
    warmup_steps = round(settings.warmup_epochs * steps)
    budget = settings.max_minutes is not None
    clock = Clock(
        settings.epochs * steps,
        settings.max_minutes,
        steps_done=training.epochs_done * steps,
        seconds=training.seconds,
        rank=rank,
        device=device,
    )
    ranked: nn.Module | None = None

    for epoch in range(training.epochs_done, settings.epochs):
        if training.over:
            break
        seed_epoch(settings.seed, epoch, rank.index)
        module.train()
        unfrozen = unfrozen_stages(
            len(stages), epoch, freeze_epochs=settings.freeze_epochs, unfreeze_epochs=settings.unfreeze_epochs
        )
        if freeze(module.encoder, stages, unfrozen) or ranked is None:
            ranked = None  # the former one frees the gradients before the next one uses them
            ranked = on_all_ranks(learner, rank, settings.grad_accum_steps)
        losses = LossWatch(settings.member, batches, epoch, rank, keep_failure_at)
        clock.start_epoch()
        for step, batch in enumerate(on_device(batches.epoch(epoch), device)):
            if clock.steps_done <= warmup_steps:
                training.warmed_at = min(clock.progress, WARMUP_SHARE) if budget else clock.progress
            factor = lr_factor(
                settings.schedule,
                step=clock.steps_done,
                warmup_steps=warmup_steps,
                progress=clock.progress,
                warmed_at=training.warmed_at,
                budget=budget,
            )
            lr = set_lr(training.optimizer, factor)
            first = step - step % settings.grad_accum_steps
            micro_batches = min(settings.grad_accum_steps, steps - first)
            last = step + 1 == first + micro_batches
            loss = train_step(
                training, ranked, batch, max_grad_norm=settings.max_grad_norm, micro_batches=micro_batches, last=last
            )
            losses.note(loss, lr)
            clock.tick(len(batch.image) * rank.count)
            on_step(Step(epoch + 1, step + 1, steps, loss, clock.images_s, clock.seconds_left, clock.progress))
            if last and clock.over:
                break
        mean_loss, images_s = losses.mean(), clock.images_s

        miou = None
        training.epochs_done = epoch + 1
        training.steps_done = clock.steps_done
        training.over = clock.over or epoch + 1 == settings.epochs
        if training.over or (epoch + 1) % settings.val_every == 0:
            judged = training.average.module if training.average else module
            share_statistics(judged, rank)
            counts = validate(judged, val, settings, device=device, rank=rank, dtype=dtype)
            miou = scores.miou(counts)
            if miou > training.best_miou or not training.best_weights:
                training.best_miou, training.best_epoch = miou, epoch + 1
                training.best_weights = {name: t.detach().cpu().clone() for name, t in judged.state_dict().items()}

        training.curves.append(
            {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "val_miou": miou,
                "lr": lr,
                "images_s": images_s,
                "seconds": clock.epoch_seconds,
                "seconds_left": clock.seconds_left,
            }
        )
        patience = settings.early_stopping_patience
        training.over |= bool(patience) and validations_since_best(training) >= patience
        training.seconds = clock.seconds
        on_epoch(training)
    return training


def begin(
    module: MemberModule,
    stages: list[list[nn.Parameter]],
    settings: Settings,
    class_weights: Tensor | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Training:
    """Return a training of ``module``, which is on ``device``, before its first step.

    Raises InputError for an unknown optimizer, loss or head.
    """
    objective = make_objective(settings, class_weights).to(device)
    optimizer = make_optimizer(
        module,
        stages,
        settings.optimizer,
        lr=settings.lr,
        encoder_lr_factor=settings.encoder_lr_factor,
        layer_decay=settings.layer_decay,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        others=objective.parameters(),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    average = MovingAverage(module, settings.ema_decay) if settings.ema_decay else None
    return Training(module, objective, optimizer, scaler, average)


def make_objective(settings: Settings, class_weights: Tensor | None) -> Objective:
    """Return the objective that ``settings`` describe; InputError for an unknown loss or head."""
    return Objective(
        ignore_id=settings.ignore_id,
        loss={str(name): weight for name, weight in settings.loss.items()},
        class_weights=class_weights,
        focal_gamma=settings.focal_gamma,
        tversky_alpha=settings.tversky_alpha,
        ohem=settings.ohem,
        aux_heads=settings.aux_heads,
        learned=settings.head_weights == "learned",
        deep_supervision=settings.deep_supervision,
    )


def on_all_ranks(learner: Learner, rank: Rank, grad_accum_steps: int) -> nn.Module:
    """Return ``learner`` so that it shares its gradients with the other ranks, if there are any."""
    if rank.count == 1:
        return learner
    gc.collect()  # a former one is part of a reference cycle
    # A backbone may have stages that its decoder does not use. A static graph is the faster way to allow that, but
    # it fails where micro-batches do not share (no_sync).
    return DistributedDataParallel(
        learner, static_graph=grad_accum_steps == 1, find_unused_parameters=grad_accum_steps > 1
    )


def validations_since_best(training: Training) -> int:
    """Return the number of validation runs since the best one."""
    return sum(row["val_miou"] is not None for row in training.curves if row["epoch"] > training.best_epoch)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed what is random inside the network (dropout) from (seed, epoch, rank): no generator to save."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))
