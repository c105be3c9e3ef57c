"""The `segmill` command: one function per command, thin, heavy imports inside."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from flows.commands.data import HERE, WaitOption, WorkspaceOption, data_app
from flows.environment import prepare_environment, ray_address, switch_telemetry_off, tracking_uri
from segmill.errors import GateRefused, SegmillError
from segmill.params import Params, read_params, set_params
from segmill.workspace import Workspace, free_bytes
from segmill.workspace_lock import Part, writing

app = typer.Typer(
    help="Retrain, compare and replace segmentation models, from versioned data to a gated promotion.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
out = Console()
err = Console(stderr=True)

INTERRUPTED = 130  # as shells and click say it


class Sample(StrEnum):
    """The built-in labelled sets."""

    brain = "brain"
    street = "street"


app.add_typer(data_app, name="data")


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere in the line.")] = False,
) -> None:
    """Options of every command (``--debug`` is taken out of the line before it is parsed)."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New workspace.")],
    data: Annotated[Path, typer.Option(help="Labelled set, in any layout that --layout names. It is copied.")],
    layout: Annotated[str, typer.Option(help="auto, or one of those that `segmill data layouts` lists.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the set; its folder's where left out.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on a sample's id, with (?P<group>...): what stays together.")
    ] = None,
) -> None:
    """Make a workspace around your own labelled set."""
    from flows.commands.start import create

    workspace = create(folder, data, layout=layout, name=name, group=group, say=_say_line)
    out.print(
        f"{workspace.root} is ready; next: cd {folder} && segmill validate, then segmill plan, which proposes settings "
        "for this set and machine (params.yaml holds those of the demo)", highlight=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def demo(
    workspace: WorkspaceOption = Path(".demo"),
    sample: Annotated[Sample, typer.Option(help="brain: atlas slices; street: drawn scenes.")] = Sample.brain,
    more: Annotated[
        bool, typer.Option("--more", help="Grow the data first, so that challenger meets champion.")
    ] = False,
    wait: WaitOption = False,
) -> None:
    """Retrain on a built-in labelled set."""
    from flows.commands.start import create_demo

    _retrain(create_demo(workspace, sample=sample.value, more=more), "segmill demo", wait=wait)


@app.command()
def validate(
    workspace: WorkspaceOption = HERE,
    fix: Annotated[bool, typer.Option("--fix", help="Write a repaired copy as a new data version.")] = False,
    wait: WaitOption = False,
) -> None:
    """Check every sample and deal the splits."""
    from flows.commands.validate import validate as check

    space, command = Workspace.open(workspace), "segmill validate"
    with _alone(space, command, wait=wait), _alone(space, command, Part.DATA, wait=wait):
        sound = check(*_open(workspace), out, fix=fix)
    if not sound:
        raise typer.Exit(1)


@app.command()
def retrain(
    workspace: WorkspaceOption = HERE,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change params.yaml first; repeatable."),
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Bring data, members, ensemble and verdict up to date."""
    _retrain(Workspace.open(workspace), "segmill retrain", assignments or [], wait=wait)


@app.command()
def status(
    workspace: WorkspaceOption = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable state.")] = False,
) -> None:
    """Show what is stale and why, and which models stand."""
    from flows.commands.status import look, show
    from tasks.stage import survey

    space, params = _open(workspace)
    found = look(space, params, survey(space, params))
    if as_json:
        print(found.as_json())
    else:
        show(found, out)


@app.command()
def history(workspace: WorkspaceOption = HERE) -> None:
    """List every verdict and move of the champion."""
    from flows.commands.status import show_history

    show_history(_open(workspace)[0], out)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    to: Annotated[Path, typer.Option(help="Folder for the masks (PNG of class ids) and overlays.")] = Path(
        "predictions"
    ),
    model: Annotated[str, typer.Option(help="An alias or a version number of the registered model.")] = "champion",
    workspace: WorkspaceOption = HERE,
) -> None:
    """Segment images with the champion."""
    from flows.commands.predict import predict as segment

    space, params = _open(workspace)
    for path in segment(space, params, model, images, to):
        out.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def audit(
    workspace: WorkspaceOption = HERE,
    to: Annotated[
        Path | None, typer.Option(help="Folder for the review page and the list; audit/ of the workspace.")
    ] = None,
    top: Annotated[int, typer.Option(help="Samples drawn on the page.", min=1, max=500)] = 50,
    folds: Annotated[
        int, typer.Option(help="Also audit train, by this many models that each train without a part of it.", min=0)
    ] = 0,
    member: Annotated[
        str | None, typer.Option(help="The member of params.yaml that is trained for it; the smallest.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Its epochs for it; half of its own.", min=1)] = None,
    wait: WaitOption = False,
) -> None:
    """Rank labels by how much held-out predictions contradict them."""
    from flows.audit import audit as audit_labels

    with _alone(Workspace.open(workspace), "segmill audit", wait=wait):
        space, params = _open(workspace)
        audit_labels(space, params, to or space.root / "audit", top, out, folds=folds, member=member, epochs=epochs)


@app.command()
def plan(
    minutes: Annotated[float, typer.Option(help="Time that a whole run may take.", min=1)] = 60,
    accept: Annotated[bool, typer.Option("--accept", help="Write the proposals to params.yaml.")] = False,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Propose settings for this data, machine and time, with reasons."""
    from flows.commands.plan import plan as propose

    space, params = _open(workspace)
    propose(space, params, minutes, out, accepted=accept)


@app.command()
def tune(
    member: Annotated[str, typer.Argument(help="A network of params.yaml.")],
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
    repeats: Annotated[int, typer.Option(help="Further seeds of the winner and of what stands.", min=0)] = 2,
    accept: Annotated[bool, typer.Option("--accept", help="Write the last winner to params.yaml, and end.")] = False,
    workspace: WorkspaceOption = HERE,
    wait: WaitOption = False,
) -> None:
    """Search the best settings of a member; goes on after a stop."""
    if accept:
        space, _ = _open(workspace)
        from flows.tune import accept as write_patch

        write_patch(space, member, out)
        return
    with _alone(Workspace.open(workspace), f"segmill tune {member}", wait=wait):
        space, params = _open(workspace)
        from flows.tune import run_tune

        run_tune(
            space, params, member, searches=search or [], minutes=minutes, trials=trials, epochs=epochs,
            repeats=repeats, console=out,
        )  # fmt: skip


@app.command()
def profile(
    member: Annotated[str, typer.Argument(help="A network of params.yaml.")],
    steps: Annotated[int, typer.Option(help="Training steps measured.", min=1)] = 8,
    workspace: WorkspaceOption = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable figures.")] = False,
) -> None:
    """Show where a member's training step spends its time."""
    from flows.commands.profile import profile as measure

    space, params = _open(workspace)
    measure(space, params, member, out, steps=steps, as_json=as_json)


@app.command()
def ui(
    workspace: WorkspaceOption = HERE,
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow page.")] = 5000,
) -> None:
    """Start the Prefect and MLflow pages on this machine."""
    from flows.commands.ui import serve

    space, params = _open(workspace)
    serve(space, tracking_uri(space, params), prefect_port, mlflow_port, out)


@app.command()
def doctor(
    workspace: WorkspaceOption = HERE,
    fix: Annotated[
        bool, typer.Option("--fix", help="First rename keys of params.yaml that have a new name; comments stay.")
    ] = False,
) -> None:
    """Check installation, machine and workspace."""
    from flows.commands.doctor import examine
    from flows.commands.doctor import fix as rename

    if fix:
        rename(workspace, out)
    if not examine(workspace, out):
        raise typer.Exit(1)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml, such as prepare or finetune@NAME.")],
    workspace: WorkspaceOption = HERE,
    wait: WaitOption = False,
) -> None:
    """Run one stage and nothing else, as `dvc repro` does."""
    from contextlib import nullcontext

    from segmill.cluster.connection import connect
    from tasks.inputs import refuse_other_settings
    from tasks.stage import run

    space, command, base = Workspace.open(workspace), f"segmill stage {name}", name.partition("@")[0]
    reads_data = base in ("validate", "prepare")
    with (
        _alone(space, command, wait=wait),
        _alone(space, command, Part.DATA, wait=wait) if reads_data else nullcontext(),
    ):
        _, params = _open(workspace)
        refuse_other_settings(space, params, name)
        with connect(ray_address(params)) if base in ("finetune", "ensemble", "evaluate") else nullcontext():
            run(space, name, params)


def _open(folder: Path) -> tuple[Workspace, Params]:
    workspace = Workspace.open(folder)
    params = read_params(workspace.params)
    prepare_environment(workspace, params)
    return workspace, params


def _alone(
    workspace: Workspace, command: str, part: Part = Part.WORKSPACE, *, wait: bool = False
) -> AbstractContextManager[None]:
    """Be the only writer of the workspace; what it holds is read inside, since another may have changed it."""
    return writing(workspace, part, command, wait=wait, say=_say_line)


def _retrain(workspace: Workspace, command: str, assignments: Sequence[str] = (), *, wait: bool) -> None:
    from flows.summary import show_result

    with _alone(workspace, command, wait=wait):
        with _alone(workspace, command, Part.DATA, wait=wait):
            for change in set_params(workspace.params, list(assignments)):
                out.print(f"params.yaml: {change}", highlight=False, soft_wrap=True)
            params = read_params(workspace.params)
            prepare_environment(workspace, params)
            if _nothing_to_do(workspace, params):
                return
        from flows.retrain import run_retrain

        result = run_retrain(workspace, params, out)
    show_result(result, out)
    if result["verdict"]["decision"] != "PASS":
        raise GateRefused(f"the gate said {result['verdict']['decision']}: the champion stays")


def _nothing_to_do(workspace: Workspace, params: Params) -> bool:
    """Look at data, stages and verdict; say so where all are those of the last run."""
    from flows.commands.status import look
    from tasks.stage import bring_up_to_date, survey

    bring_up_to_date(workspace, "fingerprint", params)
    stages = survey(workspace, params)
    if any(outcome.state != "fresh" for outcome in stages.values()) or not look(workspace, params, stages).up_to_date:
        return False
    for outcome in stages.values():
        out.print(f"{outcome.stage}: fresh (unchanged)", highlight=False, style="dim")
    out.print("nothing to do: data, params and code are those of the last run; no new version was made", soft_wrap=True)
    return True


def main() -> NoReturn:
    """Run the command line. Exit codes: 1 yours to mend, 2 usage, 3 the gate said no, 4 infrastructure."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    switch_telemetry_off()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop ends a run as Ctrl-C does
    try:
        app(arguments, prog_name="segmill")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SegmillError as error:
        code = _say(debug, str(error), error.exit_code)
    except OSError as error:
        code = _say(debug, *_about_the_system(error))
    except Exception as error:
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        code = _say(debug, f"unexpected {what}; run again with --debug for the traceback", 1)
    if code == INTERRUPTED:
        _say(debug, "interrupted; what was finished is recorded, and the next run goes on from there", code)
    sys.exit(code)


def _say_line(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True)


def _say(debug: bool, sentence: str, code: int) -> int:
    if debug:
        err.print_exception()
    label = "[bold yellow]gate[/]" if code == GateRefused.exit_code else "[bold red]error[/]"
    err.print(f"{label} {escape(sentence)}", highlight=False, soft_wrap=True)
    return code


def _about_the_system(error: OSError) -> tuple[str, int]:
    where = error.filename or "the workspace"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = Path(error.filename) if error.filename else Path.cwd()
        free = free_bytes(folder) / 2**20
        return f"the disk is full: {free:.0f} MiB free where {where} lies; free some space and run again", 1
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where} may not be written or read ({error.strerror}); check its owner and permissions", 1
    return f"{where}: {error.strerror or error}; run again with --debug for the traceback", 1


if __name__ == "__main__":
    main()
