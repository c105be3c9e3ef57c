"""Stage finetune@NAME: train one member of the ensemble on Ray."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path
from statistics import median

from segmill import progress
from segmill.cluster.queue import TRAININGS
from segmill.cluster.resources import Resources, check_resources, even_share, total_resources, whole_node
from segmill.cluster.work import Running, on_ray, wait
from segmill.data.loading.policy import read_policy
from segmill.data.packing.packed import PackedSplit
from segmill.data.splitting.shares import SplitShares
from segmill.files import replacing
from segmill.models.checking import NetworkToCheck, SvmToCheck, ToCheck, check_members
from segmill.params import Params
from segmill.promotion.champion import champion_start
from segmill.tracking import read_curves
from segmill.train_settings import NetworkSettings
from segmill.training.distributed import launch
from segmill.training.distributed.run_folder import (
    FINISHED,
    copy_finished,
    drop_if_recorded,
    has_finished,
    incidents_path,
)
from segmill.training.distributed.stall import stacks_path
from segmill.training.distributed.svm import fit_on_ray
from segmill.training.job import Start, TrainData, TrainJob, Workers
from segmill.training.svm.job import SvmJob
from segmill.tuning.forecast import PastTraining
from segmill.tuning.speeds import note_training
from segmill.workspace import Workspace
from tasks.inputs import code_path, member_settings, read_code
from tasks.register import model_name
from tasks.stage import recorded_md5
from tasks.version import packed_version

OVERLOADED = 2.0  # processes that want a core, per core


def finetune(workspace: Workspace, params: Params, name: str) -> None:
    """Write ``models/members/NAME``. An interrupted run resumes from its last checkpoint, or takes what it finished.

    Raises:
        InputError: the weights can't be reached, or the member does not fit the memory.
        InfrastructureError: the cluster is too small for what `ray` in params.yaml asks.
        SegmillError: training went wrong (the loss was not finite).
    """
    each, times = resources_of(params, name)
    check_resources(f"member {name}", each, times)
    with replacing(workspace.member(name)) as draft:
        start = warm_start(workspace, params, name)
        finished = workspace.checkpoints / f"{name}-{_inputs_hash(workspace, params, name, start)}" / FINISHED
        if not has_finished(finished):
            progress.report(
                _progress_path(workspace, name), member=name, state="waiting for its turn", time=time.time()
            )
            with TRAININGS.turn(name, each.times(times)):
                if params.members[name].kind == "svm":
                    wait(on_ray(fit_on_ray, svm_job(workspace, params, name, finished), each))
                else:
                    stall_s = params.ray.stall_minutes and 60 * params.ray.stall_minutes
                    launch.train_until_finished(train_job(workspace, params, name, draft, start), stall_s=stall_s)
        copy_finished(finished, draft)


def resources_of(params: Params, name: str) -> tuple[Resources, int]:
    """Return what each process of the member's training holds, and how many there are."""
    gpus = params.ray.gpus_per_worker
    if params.members[name].kind == "svm":
        return Resources(params.ray.cpus_per_worker or even_share(len(params.members)), gpus), 1
    return Resources(cpus_of(params), gpus), params.ray.workers


def slots(params: Params) -> int:
    """Return how many members train side by side, where all need what the one that needs most does."""
    total = total_resources()
    needs = [each.times(times) for each, times in (resources_of(params, name) for name in params.members)]
    cpus, gpus = max(one.num_cpus for one in needs), max(one.num_gpus for one in needs)
    return max(1, int(min(total.num_cpus / cpus, total.num_gpus / gpus if gpus else math.inf)))


def warm_start(workspace: Workspace, params: Params, name: str) -> Start | None:
    """Return the champion's member that a network's training begins with; None where ``weights`` says it."""
    if params.members[name].kind == "svm" or not params.training_of(name).warm_start:
        return None
    return champion_start(workspace, params, name, model=model_name(workspace, params))


def train_job(workspace: Workspace, params: Params, name: str, out_dir: Path, start: Start | None = None) -> TrainJob:
    """Return the training of the network ``name`` of params.yaml into ``out_dir``.

    ``start``: the member it begins with, where that is not ``weights``.
    """
    return TrainJob(
        name=name,
        network=params.network_of(name),
        train=params.training_of(name),
        own_keys=params.own_training_keys(name),
        data=train_data(workspace, params),
        split=SplitShares(params.split.val, params.split.test, params.split.seed),
        data_version=packed_version(workspace, params),
        start=start,
        workers=Workers(
            count=params.ray.workers,
            cpus=cpus_of(params),
            gpus=params.ray.gpus_per_worker,
            loader_workers=params.ray.loader_workers,
        ),
        out_dir=out_dir,
        runs_dir=workspace.checkpoints,
        progress_path=_progress_path(workspace, name),
        curves_path=curves_path(workspace, name),
        failure_path=workspace.scratch / "failures" / f"{name}.npz",
        inputs_hash=_inputs_hash(workspace, params, name, start),
    )


def cpus_of(params: Params) -> float:
    """Return the CPUs of each process that trains a network."""
    return params.ray.cpus_per_worker or even_share(len(params.members) * params.ray.workers)


def train_data(workspace: Workspace, params: Params) -> TrainData:
    """Return what prepare and augment made for training."""
    extra_dir = workspace.augmented / "extra"
    return TrainData(
        packed_dir=workspace.packed,
        extra_dir=extra_dir if extra_dir.is_dir() else None,
        policy=read_policy(workspace.augmented / "recipe.json"),
        size_px=params.prepare.size_px,
    )


def svm_job(workspace: Workspace, params: Params, name: str, out_dir: Path) -> SvmJob:
    """Return the fit of the classical member ``name`` of params.yaml into ``out_dir``."""
    return SvmJob(
        name=name,
        settings=params.svm_of(name),
        packed_dir=workspace.packed,
        policy=read_policy(workspace.augmented / "recipe.json"),
        split=SplitShares(params.split.val, params.split.test, params.split.seed),
        data_version=packed_version(workspace, params),
        out_dir=out_dir,
        progress_path=_progress_path(workspace, name),
        curves_path=curves_path(workspace, name),
    )


def shortfall(workspace: Workspace, params: Params, name: str) -> str | None:
    """Say that the training of member ``name`` was too short to be judged, and what to change; None where it was not.

    It ended in its first epoch, or inside its warm-up. A classical member, and one of an earlier release, say nothing.
    """
    metrics = json.loads((workspace.member(name) / "metrics.json").read_text())
    if "steps" not in metrics:
        return None
    train, steps, whole = params.training_of(name), metrics["steps"], metrics["steps_per_epoch"]
    if steps < whole and train.max_minutes:
        tiled = params.prepare.resize == "tile"
        fewer = "whole images instead of tiles (prepare.resize=fit)" if tiled else "a smaller prepare.size_px"
        return (
            f"member {name} ended after {steps:,} of the {whole:,} steps of its first epoch, so part of train was "
            f"never seen: give it more time (train.max_minutes is {train.max_minutes:g}), {fewer}, or a larger "
            f"train.batch_size (now {train.batch_size})"
        )
    if train.max_minutes is None and train.schedule != "onecycle" and steps <= round(train.warmup_epochs * whole):
        return (
            f"member {name} ended inside its warm-up, after {steps:,} steps, so its learning rate never fell: raise "
            f"train.epochs (now {train.epochs}) or lower train.warmup_epochs (now {train.warmup_epochs:g})"
        )
    return None


def note_speed(workspace: Workspace, params: Params, name: str) -> None:
    """Keep how fast the network ``name`` was trained, for `segmill plan`; call it while its curve is there.

    Only of a single rank with settings that a plan leaves alone, for other precision or compiling has other speeds, and
    not where other work had more of the machine than the training.
    """
    if os.getloadavg()[0] > OVERLOADED * (os.cpu_count() or 1):
        return
    train, rows = params.training_of(name), read_curves(curves_path(workspace, name))
    usual = (train.precision, train.gradient_checkpointing, train.compile) == ("auto", False, "off")
    if params.members[name].kind == "svm" or params.ray.workers > 1 or not rows or not usual:
        return
    height, width = train.crop_size or PackedSplit(workspace.packed / "train").sizes()[0]
    images_s = median(float(row["images_s"]) for row in rows)
    share = 1.0 if params.ray.gpus_per_worker else cpus_of(params) / whole_node().num_cpus
    batch = json.loads((workspace.member(name) / "member.json").read_text())["params"]["train"]["batch_size"]
    px = height * width
    note_training(params.network_of(name), PastTraining(batch * px, share, images_s * px))


def begin_check(workspace: Workspace, params: Params) -> Running[None] | None:
    """Start to build every network and load its weights on Ray, so that a wrong name stops all training.

    Returns None where the same members passed before: each worker looks again at its own before it trains.
    """
    if members_passed(workspace, params):
        return None
    return on_ray(check_members, _to_check(params))


def members_passed(workspace: Workspace, params: Params) -> bool:
    """Whether the same members, with the same code, passed the check before."""
    record = _checked(workspace)
    return record.is_file() and record.read_text() == _what_is_checked(workspace, params)


def end_check(workspace: Workspace, params: Params, begun: Running[None] | None) -> None:
    """Wait for the check and remember that it passed.

    Raises:
        InputError: a line for each member that can't be built, or whose weights can't be reached.
    """
    if begun is not None:
        wait(begun)
    _checked(workspace).write_text(_what_is_checked(workspace, params))


def drop_former_members(workspace: Workspace, params: Params) -> None:
    """Delete member folders that params.yaml no longer names: the ensemble depends on the folder they are in.

    Their bytes stay in DVC's cache, so a member that comes back is restored.
    """
    for record in workspace.members.glob("*/member.json"):
        if record.parent.name not in params.members:
            shutil.rmtree(record.parent)


def drop_recorded_trainings(workspace: Workspace, name: str) -> None:
    """Delete the run folders of ``name`` whose training ended in the member that is there; call it once recorded.

    Until then a run that was killed at the end of its training takes the member from there.
    """
    for run in workspace.checkpoints.glob(f"{name}-*"):
        drop_if_recorded(run, workspace.member(name))


def incidents_of(workspace: Workspace, name: str) -> Path:
    """Return where it is said what went wrong in the training of member ``name`` and was mended by itself."""
    return incidents_path(_progress_path(workspace, name))


def stacks_of(workspace: Workspace, name: str) -> Path:
    """Return where the stacks of a training of member ``name`` that made no progress are written."""
    return stacks_path(_progress_path(workspace, name))


def curves_path(workspace: Workspace, name: str) -> Path:
    """Return where the member's curve grows while it trains."""
    return workspace.progress / f"finetune@{name}.curves.csv"


def _progress_path(workspace: Workspace, name: str) -> Path:
    return workspace.progress / f"finetune@{name}.member.json"


def _inputs_hash(workspace: Workspace, params: Params, name: str, start: Start | None = None) -> str:
    """Return 16 hex digits that change with whatever this member is made from: checkpoints go under them."""
    inputs = {
        "packed": recorded_md5(workspace, "prepare"),
        "augmented": recorded_md5(workspace, "augment"),
        "code": read_code(workspace, f"finetune@{name}"),
        **member_settings(params, name),
        "start": start and start.source,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _to_check(params: Params) -> tuple[ToCheck, ...]:
    return tuple(
        network_to_check(name, params.network_of(name))
        if member.kind == "network"
        else SvmToCheck(name=name, features=member.features, backbone=member.backbone, weights=member.weights)
        for name, member in params.members.items()
    )


def network_to_check(name: str, network: NetworkSettings) -> NetworkToCheck:
    """Return what decides whether a network can be built and filled with its weights."""
    return NetworkToCheck(
        name=name,
        backbone=network.backbone,
        decoder=network.decoder,
        weights=network.weights,
        decoder_width=network.decoder_width,
        attention=network.attention,
        context=network.context,
        aux_heads=tuple(network.aux_heads),
        deep_supervision=network.deep_supervision > 0,
    )


def _checked(workspace: Workspace) -> Path:
    return workspace.scratch / "checked_members"


def _what_is_checked(workspace: Workspace, params: Params) -> str:
    files = [code_path(workspace, f"finetune@{name}") for name in params.members]
    text = repr(_to_check(params)) + "".join(file.read_text() for file in files if file.is_file())
    return hashlib.sha256(text.encode()).hexdigest()
