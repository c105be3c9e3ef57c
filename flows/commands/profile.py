"""`segmill profile`: where a member's training step spends its time, as a table or JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.options import HERE, WorkspaceOption, members_of, open_workspace, out, tell
from segmill.errors import InputError, near_miss
from segmill.training.job import TrainData
from segmill.training.measure.profile_job import ProfileJob, ProfileResult, profile_on_ray
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.data.packing.packed import PackInfo
    from segmill.params import Params

TITLES = {
    "data": "waiting for data", "copy": "copy to the device", "forward": "forward", "loss": "loss",
    "backward": "backward", "optimizer": "optimizer", "average": "average of the weights",
}  # fmt: skip


def profile_command(
    member: Annotated[str, typer.Argument(help="A network of params.yaml.", autocompletion=members_of)],
    steps: Annotated[int, typer.Option(help="Training steps measured.", min=1)] = 8,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Show where a member's training step spends its time."""
    space, params = open_workspace(workspace)
    profile(space, params, member, out, steps=steps)


def profile(workspace: Workspace, params: Params, name: str, console: Console, *, steps: int = 8) -> None:
    """Take ``steps`` training steps of the member ``name`` on Ray and print what they cost.

    Before anything was prepared the pixels are random ones of prepare.size_px.

    Raises:
        InputError: there is no such network, or neither packed splits nor a size.
    """
    from flows.environment import ray_address
    from segmill.cluster.connection import connect
    from segmill.cluster.resources import Resources, even_share, whole_node
    from segmill.cluster.work import on_ray, wait

    _check(params, name)
    with connect(ray_address(params)):
        cpus = params.ray.cpus_per_worker or even_share(len(params.members) * params.ray.workers)
        gpus = params.ray.gpus_per_worker
        job = ProfileJob(
            name=name,
            network=params.network_of(name),
            train=params.training_of(name),
            data=_data(workspace, params),
            made_up=None if (workspace.packed / "train").is_dir() else _made_up(workspace, params),
            threads=max(1, int(cpus)),
            gpus=gpus,
            loader_workers=params.ray.loader_workers,
            share=min(1.0, gpus or cpus / whole_node().num_cpus),
            steps=steps,
        )
        result = wait(on_ray(profile_on_ray, job, Resources(cpus, gpus)))
    if not tell(**asdict(result)):
        show(result, console)


def show(facts: ProfileResult, console: Console) -> None:
    """Print what a training step costs."""
    height, width = facts.size_px
    console.print(
        f"{facts.member}: {facts.images_s:.1f} images/s, {facts.step_s:.3f} s a step of {facts.batch_size} "
        f"images of {height} x {width} px, {facts.precision}, {facts.device}, {facts.threads} threads",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if facts.made_up:
        console.print("nothing is prepared yet: the pixels are random ones, and nothing was augmented", style="yellow")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("a step")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for phase, seconds in facts.phases.items():
        table.add_row(TITLES[phase], f"{1000 * seconds:.1f}", f"{seconds / facts.step_s:.0%}")
    console.print(table)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("its operators")
    table.add_column("share", justify="right")
    for kind, share in sorted(facts.kinds.items(), key=lambda entry: -entry[1]):
        table.add_row(kind, f"{share:.0%}")
    console.print(table)
    console.print(
        f"{facts.reached_flops / 1e9:.0f} of the {facts.peak_flops / 1e9:.0f} GFLOP/s that matrix products in "
        f"{facts.precision} reach here: {facts.share_of_peak:.0%}; peak memory "
        f"{facts.peak_memory_bytes / 2**30:.2f} GiB",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(facts.advice, highlight=False, markup=False, soft_wrap=True)


def _check(params: Params, name: str) -> None:
    names = list(params.members)
    if name not in names:
        raise InputError(f"there is no member '{name}'{near_miss(name, names)} (members: {', '.join(names)})")
    if params.members[name].kind == "svm":
        raise InputError(f"{name} is an svm: it is fitted once, without steps; name a network")


def _data(workspace: Workspace, params: Params) -> TrainData:
    """Return what training reads, or would read: before augment ran, the recipe of params.yaml as it is written."""
    from segmill.data.loading.policy import OWN, Policy, read_policy
    from segmill.data.loading.recipes import settle_policy

    recipe, path = params.augment.recipe, workspace.augmented / "recipe.json"
    if path.is_file():
        policy = read_policy(path)
    elif isinstance(recipe, str):
        policy = settle_policy(recipe)
    else:
        policy = Policy(OWN, None, recipe, sha256="")
    extra_dir = workspace.augmented / "extra"
    return TrainData(
        packed_dir=workspace.packed,
        extra_dir=extra_dir if extra_dir.is_dir() else None,
        policy=policy,
        size_px=params.prepare.size_px,
    )


def _made_up(workspace: Workspace, params: Params) -> PackInfo:
    """Return what packed splits would say, for random pixels of the size and classes that the workspace names."""
    if params.prepare.size_px is None:
        raise InputError(
            "nothing is prepared yet and prepare.size_px is null, so no size is known; run `segmill retrain` first or "
            "set prepare.size_px"
        )
    from segmill.data.packing.packed import PackInfo
    from segmill.data.schema.manifest import read_dataset_info

    info = read_dataset_info(workspace.root / Path(params.data.path))
    return PackInfo(
        name=info.name,
        class_names=info.class_names,
        colors=info.colors,
        ignore_id=info.ignore_id,
        size=params.prepare.size_px,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        class_pixels=(1,) * info.num_classes,
        samples={},
        grayscale=params.prepare.grayscale,
        clahe=params.prepare.clahe,
    )
