"""`segmill retrain` and `segmill stage`: everything that is out of date, or one stage alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from flows import interrupted
from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, open_workspace, out, say, stages_of, tell
from segmill.errors import GateRefused
from segmill.workspace import Workspace
from segmill.workspace_lock import Part

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.params_change import ParamsChange

ON_RAY = ("finetune", "ensemble", "evaluate")
READS_DATA = ("validate", "prepare")
NOTHING_TO_DO = "nothing to do: data, params and code are those of the last run; no new version was made"


def retrain_command(
    workspace: WorkspaceOption = HERE,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change params.yaml first; repeatable."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="GIT_URL[@BRANCH]", help="Work in a clone of it, an empty folder at first; push results."),
    ] = None,
    wait: WaitOption = False,
) -> None:
    """Bring data, members, ensemble and verdict up to date."""
    if source is None:
        retrain(Workspace.open(workspace), "segmill retrain", assignments or [], wait=wait)
        return
    from flows.source import run_source

    run_source(
        source,
        workspace.resolve(),
        lambda space: retrain(space, "segmill retrain", assignments or [], wait=wait),
        say,
        wait=wait,
    )


def stage_command(
    name: Annotated[
        str, typer.Argument(help="A stage of dvc.yaml, such as prepare or finetune@NAME.", autocompletion=stages_of)
    ],
    workspace: WorkspaceOption = HERE,
    wait: WaitOption = False,
) -> None:
    """Run one stage and nothing else, as `dvc repro` does."""
    from flows.environment import ray_address
    from segmill.cluster.connection import connect
    from segmill.orphans import end_with_this_process
    from tasks.inputs import refuse_other_settings
    from tasks.stage import run

    space, command, base = Workspace.open(workspace), f"segmill stage {name}", name.partition("@")[0]
    with (
        alone(space, command, wait=wait),
        alone(space, command, Part.DATA, wait=wait) if base in READS_DATA else nullcontext(),
    ):
        _, params = open_workspace(workspace)
        refuse_other_settings(space, params, name)
        if base in ON_RAY:
            end_with_this_process(temporary_folder=True)
        with connect(ray_address(params)) if base in ON_RAY else nullcontext():
            run(space, name, params)


def retrain(workspace: Workspace, command: str, assignments: Sequence[str] = (), *, wait: bool) -> str:
    """Run the flow unless nothing has changed, print what came of it and return that as a sentence.

    Raises GateRefused where the verdict is no PASS.
    """
    from flows.environment import prepare_environment
    from flows.leftovers import send_unsent
    from flows.source import refuse_lost_stores
    from flows.summary import show_result
    from segmill.data.versioning.cloning import source_of
    from segmill.former_pipeline import refuse_incomplete_pipeline
    from segmill.params_change import change_params
    from tasks.finetune import members_passed

    with alone(workspace, command, wait=wait):
        with alone(workspace, command, Part.DATA, wait=wait):
            refuse_incomplete_pipeline(workspace)
            change = change_params(workspace.params, list(assignments))
            params = change.params
            if source_of(workspace.root):
                refuse_lost_stores(workspace, params)
            prepare_environment(workspace, params)
            send_unsent(workspace, params)
            if not change.lines or members_passed(workspace, params):
                _settle(change)
                if _known(workspace, params):
                    return NOTHING_TO_DO
                if _nothing_to_do(workspace, params):
                    _settle_interrupted(workspace, params)  # where that was after its last step
                    return NOTHING_TO_DO
        from flows.retrain import run_retrain
        from flows.standing import remember

        result = run_retrain(workspace, params, change.text, out, settle=lambda: _settle(change))
        remember(workspace, params)
    tell(**result, nothing_to_do=False)
    show_result(result, out)
    if result["verdict"]["decision"] != "PASS":
        raise GateRefused(f"{result['verdict']['decision']}: {result['outcome']}")
    return str(result["outcome"])


def _settle(change: ParamsChange) -> None:
    """Write what ``--set`` says, once it is known that a run can be made with it."""
    if change.write():
        for line in change.lines:
            say(f"params.yaml: {line}")


def _settle_interrupted(workspace: Workspace, params: Params) -> None:
    """End in MLflow and Prefect what a run left there that was interrupted, or that could not tell them."""
    from flows.leftovers import settle
    from tasks.register import model_name

    if interrupted.is_unsettled(workspace):
        from flows.prefect_server import start_server

        start_server()
        settle(workspace, params, model_name(workspace, params))
    interrupted.end(workspace)


def _known(workspace: Workspace, params: Params) -> bool:
    """In a clone whose files were not fetched yet, say so where a run would come to nothing new."""
    from flows.environment import tracking_uri
    from segmill.data.versioning.cloning import source_of
    from tasks.known import known_verdict

    if source_of(workspace.root) is None or (workspace.root / params.data.path).exists():
        return False
    known = known_verdict(workspace, params, tracking_uri(workspace, params))
    if known is None:
        return False
    verdict = {"decision": known.judged.decision, "reasons": known.judged.reasons}
    tell(model=known.model, version=known.version, verdict=verdict, outcome=known.judged.outcome, nothing_to_do=True)
    out.print(
        "nothing to do: data, params and code are those of an earlier run, and nothing was fetched; "
        f"{known.judged.outcome}",
        highlight=False,
        soft_wrap=True,
    )
    return True


def _nothing_to_do(workspace: Workspace, params: Params) -> bool:
    """Look at data, stages and verdict; say so where all are those of the last run."""
    from flows.commands.status import look
    from flows.standing import registry_asked
    from tasks.stage import bring_up_to_date, survey

    with registry_asked(workspace, params) as registry:
        bring_up_to_date(workspace, "fingerprint", params)
        stages = survey(workspace, params)
        if any(outcome.state != "fresh" for outcome in stages.values()):
            return False
        found = look(workspace, params, stages, registry())
        if not found.up_to_date:
            return False
    tell(**(found.last_run or {}), nothing_to_do=True)
    for outcome in stages.values():
        out.print(f"{outcome.stage}: fresh (unchanged)", highlight=False, style="dim")
    out.print(NOTHING_TO_DO, soft_wrap=True)
    return True
