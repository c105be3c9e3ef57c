"""The audit of labels: what the ensemble, and on request models of train's folds, contradict with confidence."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from flows.display import showing
from flows.environment import ray_address
from segmill.cluster.connection import connect
from segmill.cluster.resources import even_share, whole_node
from segmill.cluster.work import on_ray, wait
from segmill.data.schema.manifest import read_manifest
from segmill.errors import InputError, near_miss
from segmill.evaluation.audit_job import AuditJob, AuditResult, Source, audit_on_ray
from segmill.evaluation.folds import assign_folds, train_groups, write_fold
from segmill.files import replacing
from segmill.params import Params
from segmill.training.distributed import launch
from segmill.training.distributed.run_folder import drop_if_recorded
from segmill.training.job import TrainJob
from segmill.workspace import Workspace
from tasks.finetune import train_job
from tasks.stage import noted, recorded_md5

HELD_OUT = ("val", "test")
STEP = "audit"


@dataclass(frozen=True)
class FoldTraining:
    """The models that judge train: ``folds`` of ``member``, ``epochs`` each; a retraining has ``own_epochs``."""

    folds: int
    member: str
    epochs: int
    own_epochs: int


def fold_training(
    workspace: Workspace, params: Params, folds: int, member: str | None, epochs: int | None
) -> FoldTraining | None:
    """Return what is to be trained for an audit, None for ``folds`` 0: then val and test alone are judged.

    Args:
        folds: models, each trained without a part of train and asked about that part.
        member: whose recipe they are trained by; the smallest of the ensemble where left out.
        epochs: of each of them; half of the member's own where left out.

    Raises:
        InputError: there is no ensemble of this data yet, or no such member.
    """
    _refuse_unknown(workspace, params)
    if not folds:
        return None
    name = _fold_member(workspace, params, member)
    own = params.training_of(name).epochs
    return FoldTraining(folds, name, epochs or max(1, own // 2), own)


def audit(
    workspace: Workspace, params: Params, folder: Path, top: int, console: Console, training: FoldTraining | None
) -> AuditResult:
    """Write the review page and the list into ``folder``; return what a terminal shows of the audit.

    Args:
        top: samples drawn on the page.
        console: shows how far it is.
        training: the models that judge train. Those of an earlier audit of the same data and settings are used again.

    Raises:
        InputError: train has too few groups.
    """
    folds, name, epochs = (training.folds, training.member, training.epochs) if training else (0, "", 0)
    parts = assign_folds(train_groups(workspace.packed), folds) if folds else []
    steps = [f"{STEP}@fold-{number}" for number in range(1, folds + 1)]
    with showing(workspace, [*steps, STEP], console), connect(ray_address(params)):
        sources = [Source(workspace.ensemble, HELD_OUT, open_groups(workspace, params))]
        with ThreadPoolExecutor(max(1, folds)) as threads:
            trained = [
                threads.submit(_train_fold, workspace, params, step, name, epochs, part, folds)
                for step, part in zip(steps, parts, strict=True)
            ]
            sources += [Source(one.result(), ("train",), part) for one, part in zip(trained, parts, strict=True)]
        with noted(workspace, STEP):
            job = AuditJob(
                sources=tuple(sources),
                raw_dir=workspace.root / params.data.path,
                manifest_path=workspace.manifest,
                border_crop_px=params.prepare.border_crop_px,
                out_dir=folder.resolve(),
                top=top,
                progress_path=workspace.count(STEP),
            )
            return wait(on_ray(audit_on_ray, job, whole_node()))


def open_groups(workspace: Workspace, params: Params) -> frozenset[str] | None:
    """Return the groups whose predictions may be shown, None for all: of sealed ones nothing is drawn or listed."""
    if not params.split.sealed:
        return None
    return frozenset(read_manifest(workspace.manifest)["group"].unique().to_pylist()).difference(params.split.sealed)


def _refuse_unknown(workspace: Workspace, params: Params) -> None:
    """Raise InputError unless the ensemble comes from the splits of this manifest: else it may have seen val and test.

    Code and settings may have moved since: what was held out stays so.
    """
    if not (workspace.ensemble / "ensemble.json").is_file():
        raise InputError("there is no trained ensemble yet, and the audit asks one; run `segmill retrain` first")
    packed, manifest = (str(path.relative_to(workspace.root)) for path in (workspace.packed, workspace.manifest))
    chain = [("prepare", manifest, "validate"), ("ensemble", packed, "prepare")]
    chain += [(f"finetune@{name}", packed, "prepare") for name in params.members]
    for stage, path, maker in chain:
        made = recorded_md5(workspace, maker)
        if not made or recorded_md5(workspace, stage, dependency=path) != made:
            raise InputError(
                f"the ensemble was not made from these splits ({stage} ran with another {path}, or never), so it may "
                "have learned the labels it would judge; run `segmill retrain` first"
            )


def _fold_member(workspace: Workspace, params: Params, member: str | None) -> str:
    networks = [name for name, one in params.members.items() if one.kind == "network"]
    if not networks:
        raise InputError("no member of params.yaml is a network, and only networks are trained on parts; add one")
    if member is not None and member not in networks:
        known = ", ".join(networks)
        raise InputError(f"there is no network {member!r}{near_miss(member, networks)} (networks: {known})")
    return member or min(networks, key=lambda name: (workspace.member(name) / "weights.safetensors").stat().st_size)


def _train_fold(
    workspace: Workspace, params: Params, step: str, name: str, epochs: int, left_out: frozenset[str], folds: int
) -> Path:
    """Train the member ``name`` without the groups ``left_out``, unless that was done before; return its folder."""
    job = fold_job(train_job(workspace, params, name, Path()), left_out, epochs, workspace.scratch / "audit")
    place = job.out_dir.parent
    with noted(workspace, step):
        if not (job.out_dir / "member.json").is_file():
            write_fold(workspace.packed, job.data.packed_dir, left_out)
            with replacing(job.out_dir) as draft:
                cpus = params.ray.cpus_per_worker or even_share(folds * params.ray.workers)
                launch.train_member(
                    replace(
                        job,
                        out_dir=draft,
                        workers=replace(job.workers, cpus=cpus),
                        progress_path=workspace.progress / f"{step}.member.json",
                        curves_path=place / "curves.csv",
                    )
                )
        drop_if_recorded(job.run_folder, job.out_dir)
    return job.out_dir


def fold_job(job: TrainJob, left_out: frozenset[str], epochs: int, folder: Path) -> TrainJob:
    """Return the training of ``job``'s member without the groups ``left_out``, for ``epochs``, into a place of its own.

    Without the augment stage's extra samples, which may show what is left out. Validated once, at the end.
    """
    key = json.dumps([job.inputs_hash, epochs, sorted(left_out)])
    inputs_hash = hashlib.sha256(key.encode()).hexdigest()[:16]
    place = folder / inputs_hash
    return replace(
        job,
        train=replace(job.train, epochs=epochs, val_every=epochs),
        data=replace(job.data, packed_dir=place / "packed", extra_dir=None),
        out_dir=place / "member",
        inputs_hash=inputs_hash,
    )
