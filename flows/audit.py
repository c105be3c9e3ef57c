"""The audit of labels: what the ensemble, and on request models of train's folds, contradict with confidence."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.display import showing
from flows.environment import ray_address
from segmill.cluster.connection import connect
from segmill.cluster.resources import even_share, whole_node
from segmill.cluster.work import wait
from segmill.errors import InputError, near_miss
from segmill.evaluation.audit import Source
from segmill.evaluation.folds import deal_folds, train_groups, write_fold
from segmill.files import replacing
from segmill.params import Params
from segmill.training.distributed import launch
from segmill.workspace import Workspace
from tasks.finetune import training_arguments
from tasks.stage import noted, recorded_md5

HELD_OUT = ("val", "test")
STEP = "audit"


def audit(
    workspace: Workspace,
    params: Params,
    folder: Path,
    top: int,
    console: Console,
    *,
    folds: int = 0,
    member: str | None = None,
    epochs: int | None = None,
) -> None:
    """Write the review page and the list into ``folder`` and print the first rows.

    Args:
        top: samples drawn on the page.
        folds: 0 looks at val and test only; else that many models are trained, each without a part of train, and
            asked about that part. Those of an earlier audit of the same data and settings are used again.
        member: whose recipe they are trained by; the smallest of the ensemble where left out.
        epochs: of each of them; half of the member's own where left out.

    Raises:
        InputError: there is no ensemble of this data yet, no such member, or train has too few groups.
    """
    _refuse_unknown(workspace, params)
    name = _fold_member(workspace, params, member)
    whole = params.training_of(name).epochs
    epochs = epochs or max(1, whole // 2)
    parts = deal_folds(train_groups(workspace.packed), folds) if folds else []
    steps = [f"{STEP}@fold-{number}" for number in range(1, folds + 1)]
    if folds:
        console.print(
            f"train: {folds} models of {name}, {epochs} epochs each ({whole} in a retraining), each asked about what "
            "it was trained without",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    with showing(workspace, [*steps, STEP], console), connect(ray_address(params)):
        sources = [Source(workspace.ensemble, HELD_OUT)]
        with ThreadPoolExecutor(max(1, folds)) as threads:
            trained = [
                threads.submit(_train_fold, workspace, params, step, name, epochs, part, folds)
                for step, part in zip(steps, parts, strict=True)
            ]
            sources += [Source(one.result(), ("train",), part) for one, part in zip(trained, parts, strict=True)]
        with noted(workspace, STEP):
            found = wait(
                launch.on_ray(
                    "segmill.evaluation.audit_report:audit_and_report",
                    sources,
                    workspace.root / params.data.path,
                    workspace.manifest,
                    folder.resolve(),
                    top=top,
                    border_crop_px=params.prepare.border_crop_px,
                    progress_path=workspace.count(STEP),
                    **asdict(whole_node()),
                )
            )
    show(found, console)


def show(found: dict[str, Any], console: Console) -> None:
    """Print what ``audit_and_report`` returned: how much was looked at, the first rows, the paths."""
    looked = ", ".join(f"{count} {split}" for split, count in found["samples"].items())
    console.print(f"looked at {looked} samples: {found['suspicious']} are suspicious", highlight=False, soft_wrap=True)
    if "train" not in found["samples"]:
        console.print("train was not looked at: the models learned its labels; --folds 3 trains models that did not",
                      style="dim", highlight=False, soft_wrap=True)  # fmt: skip
    if found["unknown"]:
        console.print(f"a model hardly knows {', '.join(found['unknown'])}: what is missing of it is not found",
                      style="yellow", highlight=False, soft_wrap=True)  # fmt: skip
    if found["first"]:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("#", "sample", "split", "labelled", "predicted"):
            table.add_column(title, overflow="fold")
        for title in ("px", "confidence", "regions", "score"):
            table.add_column(title, justify="right")
        for row in found["first"]:
            table.add_row(
                str(row["rank"]), escape(row["sample"]), row["split"], escape(row["given"]), escape(row["suggested"]),
                str(row["pixels"]), f"{row['confidence']:.2f}", str(row["regions"]), f"{row['sample_score']:.2f}",
            )  # fmt: skip
        console.print(table)
    for path in (found["page"], found["table"]):
        console.print(path, highlight=False, soft_wrap=True, markup=False)


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
    """Train the member ``name`` without the groups ``left_out``, unless that was done before; return its folder.

    Without the augment stage's extra samples, which may show what is left out.
    """
    settings = training_arguments(workspace, params, name, Path())
    key = json.dumps([settings["inputs_hash"], epochs, sorted(left_out)])
    inputs_hash = hashlib.sha256(key.encode()).hexdigest()[:16]
    place = workspace.scratch / "audit" / inputs_hash
    with noted(workspace, step):
        if (place / "member" / "member.json").is_file():
            return place / "member"
        write_fold(workspace.packed, place / "packed", left_out)
        with replacing(place / "member") as draft:
            launch.train_member(
                settings
                | {
                    "packed_dir": str(place / "packed"),
                    "extra_dir": None,
                    "out_dir": str(draft),
                    "epochs": epochs,
                    "val_every": epochs,
                    "progress_path": str(workspace.progress / f"{step}.member.json"),
                    "curves_path": str(place / "curves.csv"),
                    "cpus_per_worker": params.ray.cpus_per_worker or even_share(folds * params.ray.workers),
                    "inputs_hash": inputs_hash,
                }
            )
        return place / "member"
