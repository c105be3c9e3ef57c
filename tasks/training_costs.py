"""How long the members' trainings may take, by how long such ones took on this machine: the longest begin first."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from segmill.data.packing.packed import PackedSplit
from segmill.params import Params
from segmill.tracking import read_curves
from segmill.tuning.speeds import note_cost, remembered_cost
from segmill.workspace import Workspace
from tasks.finetune import curves_path, resources_of, train_data

# What the time that a training takes per pixel depends on, besides the share of the machine that it has.
OF_NETWORK = ("backbone", "decoder", "decoder_width", "attention", "context", "aux_heads", "deep_supervision")
OF_TRAINING = ("batch_size", "crop_size", "precision", "gradient_checkpointing", "compile", "optimizer", "val_every")


def expected_seconds(workspace: Workspace, params: Params) -> dict[str, float]:
    """Return how long each member's training may take: infinite where none like it ran on this machine."""
    samples, whole_px = _train_samples(workspace, params)
    expected = {}
    for name in params.members:
        epochs, minutes = _limits(params, name)
        px = epochs * _epoch_px(params, name, samples, whole_px)
        cost = remembered_cost(_training(params, name), px)
        seconds = math.inf if cost is None else cost / _processors(params, name)
        expected[name] = min(seconds, 60 * minutes)
    return expected


def note_seconds(workspace: Workspace, params: Params, name: str) -> None:
    """Keep how long member ``name`` was trained; call it while its curve is there."""
    if rows := read_curves(curves_path(workspace, name)):
        px = len(rows) * _epoch_px(params, name, *_train_samples(workspace, params))
        seconds = sum(float(row["seconds"]) for row in rows)
        note_cost(_training(params, name), px, seconds * _processors(params, name))


def _limits(params: Params, name: str) -> tuple[int, float]:
    """Return the epochs and the minutes after which a training ends; a fit has one epoch."""
    if params.members[name].kind == "svm":
        return 1, params.svm_of(name).max_minutes or math.inf
    train = params.training_of(name)
    return train.epochs, train.max_minutes or math.inf


def _training(params: Params, name: str) -> dict[str, Any]:
    """Return what the time per pixel of a member's training depends on, as plain values."""
    on_gpu = params.ray.gpus_per_worker > 0
    if params.members[name].kind == "svm":
        return {"svm": asdict(params.svm_of(name)) | {"seed": 0}, "on_gpu": on_gpu}
    network, train = params.network_of(name), params.training_of(name)
    settings = {key: getattr(network, key) for key in OF_NETWORK} | {key: getattr(train, key) for key in OF_TRAINING}
    return {"network": settings, "on_gpu": on_gpu}


def _processors(params: Params, name: str) -> float:
    """Return how many GPUs, else cores, the member's training has: with twice as many it takes half as long."""
    each, times = resources_of(params, name)
    return times * (each.num_gpus or each.num_cpus)


def _train_samples(workspace: Workspace, params: Params) -> tuple[int, int]:
    """Return the number of train samples and the pixels of all, with the extra ones."""
    data = train_data(workspace, params)
    split = PackedSplit(data.packed_dir / "train", *([data.extra_dir] if data.extra_dir else []))
    return len(split), sum(height * width for height, width in map(split.shape, range(len(split))))


def _epoch_px(params: Params, name: str, samples: int, whole_px: int) -> int:
    """Return the pixels that a training sees in an epoch."""
    crop = None if params.members[name].kind == "svm" else params.training_of(name).crop_size
    return samples * crop[0] * crop[1] if crop else whole_px
