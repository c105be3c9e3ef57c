"""One rank of a member's training, as Ray Train runs it: builds what the loop needs, reports, saves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from segmill import progress
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.errors import InputError
from segmill.models import backbones, weights
from segmill.models.members import MemberModule, MemberSpec, build, save_member, write_curves
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.loop import Step, make_objective, train_member
from segmill.training.losses import class_weights
from segmill.training.measure.settling import settle
from segmill.training.settings import Settings, run_folder
from segmill.training.targets import SignedDistances
from segmill.training.warm_start import adopt, begin_with

PROGRESS_EVERY_S = 0.5
# What torch's batch normalisation says of one image whose feature was pooled to one value.
TOO_FEW_TO_NORMALISE = "Expected more than 1 value per channel when training"
# Columns that differ from run to run: watched while it trains, kept out of the member, whose bytes repeat.
TIMINGS = ("images_s", "seconds", "seconds_left")


def work(args: dict[str, Any]) -> None:
    """Train as launch.train_member's ``args`` say; running out of memory becomes one sentence."""
    try:
        _work(args)
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise out_of_memory(args["name"], args["batch_size"], args["size"]) from error
        raise


def _work(args: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    # A single rank sees the machine's GPUs even where it asks for none.
    device = ray.train.torch.get_device() if args["gpus_per_worker"] > 0 else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    reporter = Reporter(args, rank)
    run = run_folder(args)
    trained = train(
        args,
        rank=rank,
        device=device,
        resume_from=run if (run / checkpoint.FILE).is_file() else None,
        keep_failure_at=Path(args["failure_path"]),
        on_step=reporter.step,
        on_epoch=reporter.epoch,
    )
    if rank.index == 0:
        save(trained, args)


@dataclass(frozen=True)
class Trained:
    """A member after its training: its last weights, and where they came from.

    ``start``: the weights it began with. ``params``: params.yaml with what was left to the machine filled in.
    """

    module: MemberModule
    spec: MemberSpec
    start: weights.Weights
    params: dict[str, Any]
    training: Training


def train(
    args: dict[str, Any],
    *,
    rank: Rank,
    device: torch.device,
    resume_from: Path | None,
    on_step: Callable[[Step], None],
    on_epoch: Callable[[Training], None],
    keep_failure_at: Path | None = None,
) -> Trained:
    """Build the member that ``args`` describe and train it as this rank, without Ray.

    Args:
        args: as launch.train_member takes them.
        resume_from, keep_failure_at, on_step, on_epoch: as of loop.train_member.

    Raises:
        InputError: what ``args`` ask for does not go; the message names the member.
    """
    packed = read_pack(Path(args["packed_dir"]))
    try:
        torch.manual_seed(args["seed"])
        module, spec, start = first_module(args, packed)
        settings = make_settings(args, packed, pretrained=start.path is not None)
        args, settings = settle(args, module, spec, settings, packed=packed, rank=rank, device=device)
    except InputError as fault:
        raise InputError(f"member {args['name']}: {fault}") from None
    try:
        training = train_member(
            module,
            make_batches(args, packed, settings, rank=rank, device=device),
            PackedSplit(Path(args["packed_dir"]) / "val"),
            settings,
            device=device,
            rank=rank,
            class_weights=class_weights(args["class_weights"], packed.class_pixels, device),
            resume_from=resume_from,
            keep_failure_at=keep_failure_at,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    except ValueError as error:
        if TOO_FEW_TO_NORMALISE not in str(error):
            raise
        raise InputError(
            f"member {args['name']}: {args['decoder']} normalises what it pools from whole images over the batch, and "
            f"a batch of {args['batch_size']} leaves one image to each of {rank.count} workers; raise "
            "train.batch_size or lower ray.workers"
        ) from None
    return Trained(module, spec, start, args["params"], training)


def save(trained: Trained, args: dict[str, Any]) -> None:
    """Write the member's folder, with its best weights, where ``args`` say."""
    training = trained.training
    trained.module.load_state_dict(training.best_weights)
    save_member(
        Path(args["out_dir"]),
        trained.module,
        trained.spec,
        weights=trained.start,
        params=trained.params,
        data_version=args["data_version"],
        metrics={
            "val_miou": training.best_miou,
            "best_epoch": training.best_epoch,
            "epochs": training.epochs_done,
        },
        curves=[{key: row[key] for key in row if key not in TIMINGS} for row in training.curves],
        keep_heads=args["keep_heads"],
    )


def first_module(args: dict[str, Any], packed: PackInfo) -> tuple[MemberModule, MemberSpec, weights.Weights]:
    """Return the member before its first step, how it is built, and which weights it begins with.

    These are the champion's where ``start_folder`` holds the same network, else what ``weights`` says.
    """
    if args["start_folder"]:
        folder = Path(args["start_folder"])
        spec = adopt(member_spec(args, packed, packed.mean, packed.std), folder)
        if spec is not None:
            module = build(spec)
            return module, spec, begin_with(module, folder, args["start_source"])
    start = weights.resolve(args["weights"], args["backbone"])
    known = start.path is not None
    published = backbones.pretrained_normalisation(args["backbone"], packed.channels)
    spec = member_spec(args, packed, *(published if known else (packed.mean, packed.std)))
    module = build(spec)
    weights.load_into(module.encoder, start)
    return module, spec, start


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
                epochs=None if self._args["max_minutes"] else self._args["epochs"],
                step=step.step,
                steps=step.steps,
                share_done=step.progress,
                loss=float(step.loss),
                val_miou=self._val_miou,
                images_s=step.images_s,
                seconds_left=step.seconds_left,
                time=time.time(),
                pid=os.getpid(),
            )

    def epoch(self, training: Training) -> None:
        """Save this epoch's checkpoint in the run folder; every rank must come here equally often."""
        row = training.curves[-1]
        if self._rank.index == 0:
            if row["val_miou"] is not None:
                self._val_miou = row["val_miou"]
            write_curves(Path(self._args["curves_path"]), training.curves)
            checkpoint.save(training, run_folder(self._args))
        ray.train.report(row)


def member_spec(args: dict[str, Any], packed: PackInfo, mean: tuple[float, ...], std: tuple[float, ...]) -> MemberSpec:
    """Return how the member is built that ``args`` and the packed splits describe."""
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
        decoder_width=args["decoder_width"],
        attention=args["attention"],
        context=args["context"],
        heads=tuple(args["aux_heads"]),
        deep_supervision=args["deep_supervision"] > 0,
    )


def make_batches(
    args: dict[str, Any], packed: PackInfo, settings: Settings, *, rank: Rank, device: torch.device
) -> TrainBatches:
    """Return a rank's training batches, with the signed distances of their masks where the objective needs them."""
    extra = [Path(args["extra_dir"])] if args["extra_dir"] else []
    size = args["crop_size"] or args["size"]
    needs_distances = make_objective(settings, None).needs_distances
    return TrainBatches(
        PackedSplit(Path(args["packed_dir"]) / "train", *extra),
        Augmenter(args["recipe"], size and tuple(size), args["seed"], ignore_id=packed.ignore_id),
        batch_size=args["batch_size"],
        seed=args["seed"],
        rank=rank.index,
        world_size=rank.count,
        loader_workers=args["loader_workers"],
        pin_memory=device.type == "cuda",
        distances=SignedDistances(packed.num_classes, packed.ignore_id) if needs_distances else None,
    )


def make_settings(args: dict[str, Any], packed: PackInfo, *, pretrained: bool) -> Settings:
    """Return the loop's settings; an encoder of random weights is never frozen."""
    known = {
        "member": args["name"],
        "num_classes": packed.num_classes,
        "ignore_id": packed.ignore_id,
        "grayscale": packed.grayscale,
        "clahe": packed.clahe,
    }
    if not pretrained:
        known |= {"freeze_epochs": 0, "unfreeze_epochs": 0}
    return Settings(**known, **{field.name: args[field.name] for field in fields(Settings) if field.name not in known})
