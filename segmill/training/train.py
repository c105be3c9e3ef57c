"""A network's training from its job to its member folder, as one rank does it. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.errors import InputError
from segmill.models import backbones, weights
from segmill.models.members import MemberModule, MemberSpec, build, save_member
from segmill.train_settings import NetworkSettings, TrainSettings
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.job import Start, TrainData, TrainJob
from segmill.training.loop import Step, make_objective, train_member
from segmill.training.losses import class_weights
from segmill.training.measure.settling import settle
from segmill.training.settings import Settings
from segmill.training.targets import SignedDistances
from segmill.training.warm_start import adopt, begin_with

# What torch's batch normalisation says of one image whose feature was pooled to one value.
TOO_FEW_TO_NORMALISE = "Expected more than 1 value per channel when training"
# Columns that differ from run to run: shown while it trains, not saved with the member, whose bytes repeat.
TIMINGS = ("images_s", "seconds", "seconds_left")


@dataclass(frozen=True)
class Trained:
    """A member after its training: its last weights, and where they came from.

    ``start``: the weights it began with. ``job``: what was trained, with what was left to the machine filled in.
    """

    module: MemberModule
    spec: MemberSpec
    start: weights.Weights
    job: TrainJob
    training: Training


@dataclass(frozen=True)
class Callbacks:
    """What a training calls while it runs: ``on_state`` with a sentence before its first step, and as of train_member,
    ``on_step`` after each batch and ``on_epoch`` after each epoch."""

    on_state: Callable[[str], None] = lambda state: None
    on_step: Callable[[Step], None] = lambda step: None
    on_epoch: Callable[[Training], None] = lambda training: None


def train(
    job: TrainJob, *, rank: Rank, device: torch.device, resume_from: Path | None, callbacks: Callbacks
) -> Trained:
    """Build the member of ``job`` and train it as this rank.

    Args:
        resume_from: folder of a checkpoint that an earlier on_epoch wrote, or None.

    Raises:
        InputError: what the job asks for is not possible; the message names the member.
        MemberFailed: the loss is not finite.
    """
    packed = read_pack(job.data.packed_dir)
    try:
        torch.manual_seed(job.train.seed)
        module, spec, start = first_module(job.name, job.network, packed, job.start)
        settings = make_settings(job.name, job.network, job.train, packed, pretrained=start.path is not None)
        job, settings = settle(
            job, module, spec, settings, packed=packed, rank=rank, device=device, on_state=callbacks.on_state
        )
    except InputError as fault:
        raise InputError(f"member {job.name}: {fault}") from None
    try:
        training = train_member(
            module,
            make_batches(
                job.data, packed, settings, rank=rank, device=device, loader_workers=job.workers.loader_workers
            ),
            PackedSplit(job.data.packed_dir / "val"),
            settings,
            device=device,
            rank=rank,
            class_weights=class_weights(job.train.class_weights, packed.class_pixels, device),
            resume_from=resume_from,
            keep_failure_at=job.failure_path,
            on_step=callbacks.on_step,
            on_epoch=callbacks.on_epoch,
        )
    except ValueError as error:
        if TOO_FEW_TO_NORMALISE not in str(error):
            raise
        raise InputError(
            f"member {job.name}: {job.network.decoder} normalises what it pools from whole images over the batch, and "
            f"a batch of {job.train.batch_size} leaves one image to each of {rank.count} workers; raise "
            "train.batch_size or lower ray.workers"
        ) from None
    return Trained(module, spec, start, job, training)


def save(trained: Trained) -> None:
    """Write the member's folder, with its best weights, where its job says."""
    job, training = trained.job, trained.training
    trained.module.load_state_dict(training.best_weights)
    save_member(
        job.out_dir,
        trained.module,
        trained.spec,
        weights=trained.start,
        params=job.record(),
        data_version=job.data_version,
        metrics={
            "val_miou": training.best_miou,
            "best_epoch": training.best_epoch,
            "epochs": training.epochs_done,
            "steps": training.steps_done,
            "steps_per_epoch": training.steps_per_epoch,
        },
        curves=[{key: row[key] for key in row if key not in TIMINGS} for row in training.curves],
        keep_heads=job.network.keep_heads,
    )


def first_module(
    name: str, network: NetworkSettings, packed: PackInfo, start: Start | None
) -> tuple[MemberModule, MemberSpec, weights.Weights]:
    """Return the member before its first step, how it is built, and which weights it begins with.

    These are the champion's where ``start`` holds the same network, else what ``network.weights`` says.
    """
    if start is not None:
        spec = adopt(member_spec(name, network, packed, packed.mean, packed.std), start.folder)
        if spec is not None:
            module = build(spec)
            return module, spec, begin_with(module, start.folder, start.source)
    source = weights.resolve(network.weights, network.backbone)
    known = source.path is not None
    published = backbones.pretrained_normalisation(network.backbone)
    spec = member_spec(name, network, packed, *(published if known else (packed.mean, packed.std)))
    module = build(spec)
    weights.load_into(module.encoder, source)
    return module, spec, source


def member_spec(
    name: str, network: NetworkSettings, packed: PackInfo, mean: tuple[float, ...], std: tuple[float, ...]
) -> MemberSpec:
    """Return how the member is built that its settings and the packed splits describe."""
    return MemberSpec(
        name,
        network.backbone,
        network.decoder,
        packed.num_classes,
        packed.channels,
        mean,
        std,
        packed.grayscale,
        packed.clahe,
        decoder_width=network.decoder_width,
        attention=network.attention,
        context=network.context,
        heads=tuple(network.aux_heads),
        deep_supervision=network.deep_supervision > 0,
    )


def make_batches(
    data: TrainData, packed: PackInfo, settings: Settings, *, rank: Rank, device: torch.device, loader_workers: int
) -> TrainBatches:
    """Return a rank's training batches, with the signed distances of their masks where the objective needs them.

    The batch size of ``settings`` is a number here.
    """
    assert isinstance(settings.batch_size, int)
    extra = [data.extra_dir] if data.extra_dir else []
    needs_distances = make_objective(settings, None).needs_distances
    return TrainBatches(
        PackedSplit(data.packed_dir / "train", *extra),
        Augmenter(
            data.policy.transforms, settings.crop_size or data.size_px, settings.seed, ignore_id=packed.ignore_id
        ),
        batch_size=settings.batch_size,
        seed=settings.seed,
        rank=rank.index,
        world_size=rank.count,
        loader_workers=loader_workers,
        pin_memory=device.type == "cuda",
        distances=SignedDistances(packed.num_classes, packed.ignore_id) if needs_distances else None,
    )


def make_settings(
    name: str, network: NetworkSettings, train: TrainSettings, packed: PackInfo, *, pretrained: bool
) -> Settings:
    """Return what the loop needs of a member's settings and of the packed splits.

    ``pretrained``: whether the encoder is; one of random weights is never frozen.
    """
    train = train if pretrained else replace(train, freeze_epochs=0, unfreeze_epochs=0)
    return Settings(
        **asdict(train),
        member=name,
        lr=network.lr,
        aux_heads=network.aux_heads,
        head_weights=network.head_weights,
        deep_supervision=network.deep_supervision,
        num_classes=packed.num_classes,
        ignore_id=packed.ignore_id,
        grayscale=packed.grayscale,
        clahe=packed.clahe,
    )
