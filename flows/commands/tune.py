"""`segmill tune`: what a search of settings found, in the terminal, and its winner into params.yaml on request."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, members_of, open_workspace, out, say, tell
from segmill.errors import InputError
from segmill.workspace import Workspace

COLOURS = {"better": "green", "noise": "yellow", "worse": "red", "unchanged": "dim"}


def tune_command(
    member: Annotated[str, typer.Argument(help="A network of params.yaml.", autocompletion=members_of)],
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=SPEC",
            help="lr=1e-4..1e-2:log, train.loss.dice=0.2..2 or augment.recipe=driving,medical; repeatable. "
            "A key without a block is the member's own. Left out: rates, decay, loss and schedule.",
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for it; 60 where --trials is left out too.", min=0)
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Most trials.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each trial; the member's own where left out.", min=1)] = None,
    repeats: Annotated[int, typer.Option(help="More seeds of the winner and of the current settings.", min=0)] = 2,
    accept: Annotated[bool, typer.Option("--accept", help="Write the last winner to params.yaml, and end.")] = False,
    workspace: WorkspaceOption = HERE,
    wait: WaitOption = False,
) -> None:
    """Search the best settings of a member; resumes after a stop."""
    if accept:
        write_patch(open_workspace(workspace)[0], member, out)
        return
    from flows.tune import run_tune, what_is_searched

    with alone(Workspace.open(workspace), f"segmill tune {member}", wait=wait):
        space, params = open_workspace(workspace)
        searches, dimensions = what_is_searched(space, params, member, search or [])
        say(f"tuning {member} on val: {', '.join(map(str, dimensions))}")
        found = run_tune(
            space, params, member, searches, minutes=minutes, trials=trials, epochs=epochs, repeats=repeats
        )  # fmt: skip
    tell(**found)
    show(found, out)


def write_patch(workspace: Workspace, member: str, console: Console) -> None:
    """Write the patch of the last tuning of ``member`` into params.yaml.

    Raises InputError where there is none, or params.yaml has become another since.
    """
    from ruamel.yaml import YAML

    from segmill.params_change import set_params
    from segmill.tuning.space import read_values, value_at

    path = workspace.root / "tuning" / member / "patch.yaml"
    if not path.is_file():
        raise InputError(f"there is no {path}; run `segmill tune {member}` first")
    patch = YAML(typ="safe").load(path.read_text())
    values = read_values(workspace.params)
    if member not in values["members"]:
        raise InputError(f"params.yaml has no member {member} any more; tune one that it has")
    for key, was in patch["evidence"]["present"].items():
        now = value_at(values, member, key)
        if now != was:
            raise InputError(
                f"{key} is {now} now and was {was} when {member} was tuned, so the evidence is of other settings; "
                f"run `segmill tune {member}` again, or set what you want by hand"
            )
    changes = set_params(workspace.params, patch["set"])
    tell(member=member, changes=changes, verdict=patch["evidence"]["verdict"])
    line = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for change in changes:
        line(f"params.yaml: {change}")
    line(patch["evidence"]["verdict"] if changes else "params.yaml holds these values already; nothing was written")


def show(found: dict[str, Any], console: Console) -> None:
    """Print what a tuning found: the trials, the winner, what it is worth, the files and the line that applies it."""
    from flows.display import clock

    line = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    states = ", ".join(f"{count} {state}" for state, count in found["states"].items())
    line(f"{found['trials']} trials in {clock(found['seconds'])}: {states}")
    line(f"winner, trial {found['winner']['trial']}: val mIoU {found['winner']['val_miou']:.3f}")
    for key, (before, after) in found["changes"].items():
        line(f"  {key}: {before} -> {after}")
    line(found["verdict"], style=COLOURS[found["decision"]])
    for path in found["files"]:
        line(path)
    if found["set"]:
        assignments = " ".join(f"--set '{assignment}'" for assignment in found["set"])
        line(f"to apply: segmill retrain {assignments}")
        line(f"or write it to params.yaml only: segmill tune {found['member']} --accept")
