"""`segmill doctor`: what can be wrong before anything runs: the installation, the machine, the workspace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, open_workspace, out, tell
from segmill.errors import InputError, SegmillError
from segmill.workspace import Workspace, free_bytes

SHOWN = (
    "segmill",
    "prefect",
    "dvc",
    "ray",
    "mlflow",
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
)
LEAST_FREE_GIB = 5.0


def doctor_command(
    workspace: WorkspaceOption = HERE,
    fix: Annotated[
        bool, typer.Option("--fix", help="First bring an earlier release's params.yaml and dvc.yaml up to this one.")
    ] = False,
    wait: WaitOption = False,
) -> None:
    """Check installation, machine and workspace."""
    if fix:
        bring_up_to_this_release(workspace, out, wait=wait)
    if not examine(workspace, out):
        raise typer.Exit(1)


def bring_up_to_this_release(folder: Path, console: Console, *, wait: bool = False) -> None:
    """Rename former keys of params.yaml, replace an earlier release's dvc.yaml, and print each change.

    Raises InputError where there is no workspace, or where only the author of a change by hand can mend it, and
    WorkspaceBusy where another command writes to the workspace.
    """
    from segmill.former_pipeline import replace_former_pipeline
    from segmill.renamed_keys import rename_former_keys

    workspace = Workspace.open(folder)
    with alone(workspace, "segmill doctor --fix", wait=wait):
        changes = [f"params.yaml: {change}" for change in rename_former_keys(workspace.params)]
        changes += [f"dvc.yaml: {change}" for change in replace_former_pipeline(workspace)]
        if freed := give_back_space(workspace):
            changes.append(f"disk: {freed / 2**20:,.0f} MiB were copies")
    tell(changes=changes)
    for change in changes:
        console.print(change, markup=False, highlight=False, soft_wrap=True)


def give_back_space(workspace: Workspace) -> int:
    """Put links in place of copies that an earlier release or `dvc` made; return the bytes that these took."""
    from segmill.params import read_params
    from segmill.stores import store_sizes
    from tasks.stage import share_recorded

    params = read_params(workspace.params)
    before = store_sizes(workspace, params)["total"]
    with suppress(SegmillError):  # the checks that follow say what is wrong
        share_recorded(workspace, params)
    return before - store_sizes(workspace, params)["total"]


def examine(folder: Path, console: Console) -> bool:
    """Print a line per check and return whether all of them passed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("libraries", _libraries),
        ("git", _git),
        ("machine", _machine),
        ("disk", lambda: _disk(folder)),
        ("workspace", lambda: _workspace(folder)),
    ]
    found = []
    for name, check in checks:
        try:
            passed, said = True, check()
        except SegmillError as error:
            passed, said = False, str(error)
        found.append({"check": name, "passed": passed, "says": said})
        label = "[green]ok[/] " if passed else "[bold red]fix[/]"
        console.print(f"{label}   {name:10} {escape(said)}", highlight=False, soft_wrap=True)
    well = all(one["passed"] for one in found)
    tell(sound=well, checks=found)
    return well


def _python() -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _libraries() -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in SHOWN)
    except PackageNotFoundError as error:
        raise InputError(f"{error.name} is not installed; run `pip install -c constraints.txt -e .` again") from None


def _git() -> str:
    found = shutil.which("git")
    if not found:
        raise InputError("git is not installed; DVC keeps its records in git")
    return found


def _machine() -> str:
    asked = "import torch; print(*map(torch.cuda.get_device_name, range(torch.cuda.device_count())), sep=', ')"
    gpus = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout.strip()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {gpus or 'no GPU'}"


def _disk(folder: Path) -> str:
    free_gib = free_bytes(folder.resolve()) / 2**30
    if free_gib < LEAST_FREE_GIB:
        raise InputError(
            f"{free_gib:.1f} GiB free on the disk of {folder.resolve()}; {LEAST_FREE_GIB:.0f} GiB are needed"
        )
    return f"{free_gib:.0f} GiB free"


def _workspace(folder: Path) -> str:
    from flows.environment import ray_address, tracking_uri
    from segmill.data.versioning.versions import data_changed

    workspace, params = open_workspace(folder)
    raw = workspace.root / params.data.path
    if not raw.exists() and data_changed(workspace.root, params.data.path) == "never added":
        raise InputError(f"there is no data at {raw}; put the labelled set there, see README for the layout")
    return (
        f"{len(params.members)} members, Ray {ray_address(params)}, MLflow {tracking_uri(workspace, params)}, "
        f"Prefect {os.environ.get('PREFECT_API_URL', 'started for each run')}"
    )
