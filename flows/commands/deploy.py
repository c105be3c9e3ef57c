"""`segmill deploy`: let the retraining run by itself, by the block `schedule` of params.yaml."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import HERE, WorkspaceOption, open_workspace, say, tell
from segmill.errors import InputError
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from flows.deploy import Deployed


def deploy_command(
    workspace: WorkspaceOption = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove deployment, triggers and alarms.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Start nothing until it is resumed.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="End a pause.")] = False,
) -> None:
    """Make or update the Prefect deployment that runs this by itself.

    Its schedule, triggers and alarms are those of the block schedule in params.yaml. A worker of the pool runs it:
    `prefect worker start --pool segmill --limit 1`.
    """
    from flows import deploy as deployment
    from tasks.register import model_name

    if sum((remove, pause, resume)) > 1 or (dry_run and (pause or resume)):
        raise InputError("--remove, --pause and --resume exclude each other", "give one; --dry-run goes with --remove")
    if not (remove or pause or resume):
        _refuse_lost_stores(workspace)
    space, params = open_workspace(workspace)
    model = model_name(space, params)
    if pause or resume:
        said = deployment.pause(params, model, paused=pause)
        tell(deployment=f"{deployment.FLOW}/{model}", paused=pause)
        say(said)
        return
    if remove:
        made = deployment.remove(params, model, dry_run=dry_run)
    else:
        made = deployment.deploy(space, params, model, dry_run=dry_run)
    tell(**asdict(made))
    _say(made, removed=remove)


def _refuse_lost_stores(workspace: Path) -> None:
    """Clone what each run is to clone, which refuses what that would; before the environment names stores here."""
    from tempfile import TemporaryDirectory

    from segmill.params import read_params

    if source := read_params(Workspace.open(workspace).params).schedule.source:
        from flows.source import open_source

        with TemporaryDirectory() as folder:
            open_source(source, Path(folder))


def _say(made: Deployed, *, removed: bool) -> None:
    for change in made.changes:
        say(f"would be: {change}" if made.dry_run else change)
    if not made.changes:
        say(f"{made.deployment} is not deployed" if removed else f"{made.deployment} is up to date")
    if not removed:
        say(f"{made.deployment}: {made.schedule}; `prefect worker start --pool {made.pool} --limit 1` runs it")
