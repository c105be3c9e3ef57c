"""One rank of a member's training, as Ray Train runs it: builds what the loop needs, reports, saves."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from segmill import progress
from segmill.data.augmentation import Augmenter
from segmill.data.dataset import TrainBatches
from segmill.data.packing import PackedSplit, PackInfo, read_pack
from segmill.errors import InputError
from segmill.models import backbones, weights
from segmill.models.members import MemberSpec, build, save_member, write_curves
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.launch import out_of_memory, ran_out_of_memory, run_folder
from segmill.training.loop import Rank, Settings, Step, train_member

PROGRESS_EVERY_S = 0.5
# Columns that differ from run to run: watched while it trains, kept out of the member, whose bytes repeat.
TIMINGS = ("images_s", "seconds", "seconds_left")


def work(args: dict[str, Any]) -> None:
    """Train as launch.submit_member's ``args`` say; running out of memory becomes one sentence."""
    try:
        _work(args)
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise out_of_memory(args) from error
        raise


def _work(args: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    packed = read_pack(Path(args["packed_dir"]))
    try:
        start = weights.resolve(args["weights"], args["backbone"])
        spec = _spec(args, packed, start)
        torch.manual_seed(args["seed"])
        module = build(spec)
        weights.load_into(module.encoder, start)
    except InputError as fault:
        raise InputError(f"member {args['name']}: {fault}") from None

    extra = [Path(args["extra_dir"])] if args["extra_dir"] else []
    batches = TrainBatches(
        PackedSplit(Path(args["packed_dir"]) / "train", *extra),
        Augmenter(args["recipe"], args["size"] and tuple(args["size"]), args["seed"], ignore_id=packed.ignore_id),
        batch_size=args["batch_size"],
        seed=args["seed"],
        rank=rank.index,
        world_size=rank.count,
        loader_workers=args["loader_workers"],
        pin_memory=device.type == "cuda",
    )
    reporter = Reporter(args, rank)
    earlier = ray.train.get_checkpoint()
    training = train_member(
        module,
        batches,
        PackedSplit(Path(args["packed_dir"]) / "val"),
        _settings(args, packed),
        device=device,
        rank=rank,
        class_weights=class_weights(args["class_weights"], packed.class_pixels, device),
        resume_from=Path(earlier.path) if earlier else None,
        on_step=reporter.step,
        on_epoch=reporter.epoch,
    )
    if rank.index == 0:
        module.load_state_dict(training.best_weights)
        save_member(
            Path(args["out_dir"]),
            module,
            spec,
            weights=start,
            params=args["params"],
            data_version=args["data_version"],
            metrics={
                "val_miou": training.best_miou,
                "best_epoch": training.best_epoch,
                "epochs": args["epochs"],
            },
            curves=[{key: row[key] for key in row if key not in TIMINGS} for row in training.curves],
        )


class Reporter:
    """Says how training goes: to Ray after each epoch, to whoever reads the progress file twice a second."""

    def __init__(self, args: dict[str, Any], rank: Rank):
        self._args = args
        self._rank = rank
        self._said_at = 0.0
        self._val_miou: float | None = None

    def step(self, step: Step) -> None:
        now = time.monotonic()
        if self._rank.index == 0 and now - self._said_at >= PROGRESS_EVERY_S:
            self._said_at = now
            progress.report(
                Path(self._args["progress_path"]),
                member=self._args["name"],
                state="training",
                epoch=step.epoch,
                epochs=self._args["epochs"],
                step=step.step,
                steps=step.steps,
                loss=float(step.loss),
                val_miou=self._val_miou,
                images_s=step.images_s,
                seconds_left=step.seconds_left,
                time=time.time(),
                pid=os.getpid(),
            )

    def epoch(self, training: Training) -> None:
        """Hand Ray this epoch's checkpoint; every rank must come here equally often."""
        row = training.curves[-1]
        if self._rank.index > 0:
            ray.train.report(row)
            return
        if row["val_miou"] is not None:
            self._val_miou = row["val_miou"]
        run = run_folder(self._args)
        write_curves(Path(self._args["curves_path"]), training.curves)
        folder = run / f"epoch_{training.epochs_done:05d}"
        folder.mkdir(exist_ok=True)
        checkpoint.save(training, folder)
        # It lies where Ray keeps checkpoints already: nothing to copy. Ray deletes the one before.
        ray.train.report(
            row,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


def class_weights(kind: str, class_pixels: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Return K weights for the cross-entropy: None, or one over the root of each class's train pixels.

    They average 1 over the classes that occur; a class that does not occur weighs 0.
    """
    if kind == "none":
        return None
    pixels = torch.tensor(class_pixels, dtype=torch.float64)
    inverse = torch.where(pixels > 0, pixels.clamp(min=1) ** -0.5, 0.0)
    return (inverse / inverse[pixels > 0].mean()).float().to(device)


def _spec(args: dict[str, Any], packed: PackInfo, start: weights.Weights) -> MemberSpec:
    mean, std = (
        (packed.mean, packed.std) if start.path is None else backbones.pretrained_normalisation(args["backbone"])
    )
    return MemberSpec(
        args["name"],
        args["backbone"],
        args["decoder"],
        packed.num_classes,
        packed.channels,
        mean,
        std,
        packed.grayscale,
        packed.clahe,
    )


def _settings(args: dict[str, Any], packed: PackInfo) -> Settings:
    same = (
        "epochs", "lr", "encoder_lr_factor", "weight_decay", "warmup_epochs",
        "dice_weight", "ema", "precision", "val_every", "seed",
    )  # fmt: skip
    return Settings(
        member=args["name"],
        num_classes=packed.num_classes,
        ignore_id=packed.ignore_id,
        grayscale=packed.grayscale,
        clahe=packed.clahe,
        **{key: args[key] for key in same},
    )
