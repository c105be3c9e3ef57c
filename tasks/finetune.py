"""Stage finetune@NAME: train one member of the ensemble on Ray."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segmill.cluster.resources import even_share
from segmill.cluster.work import Running, wait
from segmill.data.loading.augmentation import read_policy
from segmill.data.versioning.versions import recorded_version
from segmill.files import replacing
from segmill.params import Params
from segmill.promotion.champion import Start, champion_start
from segmill.training.distributed import launch
from segmill.workspace import Workspace
from tasks.inputs import code_path, member_settings, read_code
from tasks.register import model_name
from tasks.stage import recorded_md5


def finetune(workspace: Workspace, params: Params, name: str) -> None:
    """Write ``models/members/NAME``. A run broken off goes on from its last checkpoint.

    Raises:
        InputError: the weights can't be reached, or the member does not fit the memory.
        InfrastructureError: the cluster is too small for what `ray` in params.yaml asks.
        SegmillError: training went wrong (the loss was not finite).
    """
    with replacing(workspace.member(name)) as draft:
        if params.members[name].kind == "svm":
            fit = launch.on_ray(
                "segmill.training.svm.fitting:fit_member",
                fit_arguments(workspace, params, name, draft),
                num_cpus=params.ray.cpus_per_worker or even_share(len(params.members)),
                num_gpus=params.ray.gpus_per_worker,
            )
            wait(fit)
        else:
            start = warm_start(workspace, params, name)
            launch.train_member(training_arguments(workspace, params, name, draft, start))


def warm_start(workspace: Workspace, params: Params, name: str) -> Start | None:
    """Return the champion's member that a network's training begins with; None where ``weights`` says it."""
    if not params.training_of(name).warm_start:
        return None
    return champion_start(workspace, params, name, model=model_name(workspace, params))


def training_arguments(
    workspace: Workspace, params: Params, name: str, out_dir: Path, start: Start | None = None
) -> dict[str, Any]:
    """Return what ``launch.train_member`` takes to train the network ``name`` of params.yaml into ``out_dir``.

    ``start``: the member it begins with, where that is not ``weights``.
    """
    policy = read_policy(workspace.augmented / "recipe.json")
    extra_dir = workspace.augmented / "extra"
    return {
        **_common_arguments(workspace, params, name, out_dir),
        **params.members[name].model_dump(),
        **asdict(params.training_of(name)),
        "recipe": policy.transforms,
        "size": params.prepare.size_px,
        "extra_dir": str(extra_dir) if extra_dir.is_dir() else None,
        "run_dir": str(workspace.checkpoints),
        "failure_path": str(workspace.scratch / "failures" / f"{name}.npz"),
        "start_folder": str(start.folder) if start else None,
        "start_source": start.source if start else None,
        "num_workers": params.ray.workers,
        "cpus_per_worker": params.ray.cpus_per_worker or even_share(len(params.members) * params.ray.workers),
        "gpus_per_worker": params.ray.gpus_per_worker,
        "loader_workers": params.ray.loader_workers,
        "inputs_hash": _inputs_hash(workspace, params, name, start),
    }


def fit_arguments(workspace: Workspace, params: Params, name: str, out_dir: Path) -> dict[str, Any]:
    """Return what ``classical.fit_member`` takes to fit the classical member ``name`` into ``out_dir``."""
    return {**_common_arguments(workspace, params, name, out_dir), **params.members[name].model_dump()}


def begin_check(workspace: Workspace, params: Params) -> Running[Any] | None:
    """Start to build every network and reach for its weights on Ray, so that a wrong name stops all training.

    Returns None where the same members passed before: each worker looks again at its own before it trains.
    """
    if _checked(workspace).is_file() and _checked(workspace).read_text() == _what_is_checked(workspace, params):
        return None
    return launch.on_ray("segmill.models.members:check_members", _to_check(params))


def end_check(workspace: Workspace, params: Params, begun: Running[Any] | None) -> None:
    """Wait for the check and remember that it passed.

    Raises:
        InputError: a line for each member that can't be built, or whose weights can't be reached.
    """
    if begun is not None:
        wait(begun)
        _checked(workspace).write_text(_what_is_checked(workspace, params))


def drop_former_members(workspace: Workspace, params: Params) -> None:
    """Take away member folders that params.yaml no longer names: the ensemble depends on the folder they lie in.

    Their bytes stay in DVC's cache, so a member that comes back is restored.
    """
    for record in workspace.members.glob("*/member.json"):
        if record.parent.name not in params.members:
            shutil.rmtree(record.parent)


def curves_path(workspace: Workspace, name: str) -> Path:
    """Return where the member's curve grows while it trains."""
    return workspace.progress / f"finetune@{name}.curves.csv"


def _common_arguments(workspace: Workspace, params: Params, name: str, out_dir: Path) -> dict[str, Any]:
    recorded = recorded_version(workspace.root, params.data.path)
    policy = read_policy(workspace.augmented / "recipe.json")
    return {
        "name": name,
        "packed_dir": str(workspace.packed),
        "out_dir": str(out_dir),
        "progress_path": str(workspace.progress / f"finetune@{name}.member.json"),
        "curves_path": str(curves_path(workspace, name)),
        "data_version": recorded.md5 if recorded else "",
        "params": {
            "train": asdict(params.training_of(name)) if params.members[name].kind == "network" else {},
            "member": params.members[name].model_dump(),
            "split": params.split.model_dump(),
            "augment": {"recipe": policy.title, "recipe_sha256": policy.sha256, "extra_samples": policy.extra},
        },
    }


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


def _to_check(params: Params) -> list[dict[str, Any]]:
    keys = {
        "network": (
            "backbone", "decoder", "weights", "decoder_width", "attention", "context", "aux_heads", "deep_supervision",
        ),
        "svm": ("features", "backbone", "weights"),
    }  # fmt: skip
    return [
        {"name": name, "kind": member.kind, **{key: getattr(member, key) for key in keys[member.kind]}}
        for name, member in params.members.items()
    ]


def _checked(workspace: Workspace) -> Path:
    return workspace.scratch / "checked_members"


def _what_is_checked(workspace: Workspace, params: Params) -> str:
    files = [code_path(workspace, f"finetune@{name}") for name in params.members]
    text = json.dumps(_to_check(params)) + "".join(file.read_text() for file in files if file.is_file())
    return hashlib.sha256(text.encode()).hexdigest()
