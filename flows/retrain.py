"""The flow `retrain`: from the labelled set to a verdict on a new model."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import httpx
from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console

from flows import interrupted
from flows.display import clock, showing, telling
from flows.environment import artifact_location, ray_address, tracking_uri
from flows.leftovers import saying_alive, send_unsent, settle
from flows.members import log_incidents, train_members
from flows.notices import deliver_pending
from flows.pipeline_graph import PipelineGraph, name_run
from flows.prefect_server import claim_run, is_silent, run_flow, starting_server
from flows.source import publish_results
from flows.summary import markdown, next_steps, publish, run_scores, shown_interval
from segmill import progress, tracking
from segmill.cluster.connection import connect, connecting
from segmill.cluster.queue import TRAININGS
from segmill.cluster.waiting import ClusterLost
from segmill.cluster.work import Running
from segmill.data.versioning.cloning import source_of
from segmill.data.versioning.versions import DataVersion
from segmill.errors import InfrastructureError, InputError, SegmillError
from segmill.files import is_of_a_full_disk
from segmill.former_pipeline import refuse_incomplete_pipeline
from segmill.orphans import end_with_this_process
from segmill.params import Params, read_params_and_text
from segmill.promotion import passport, registry
from segmill.promotion.champion import refuse_unsigned_champion
from segmill.promotion.lease import holds, leased
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.signers import ensure_signer
from segmill.training.distributed.launch import WorkersLost
from segmill.workspace import Workspace, free_bytes
from segmill.workspace_lock import Part, writing
from tasks.comparable import refuse_what_cannot_be_judged
from tasks.finetune import (
    begin_check,
    curves_path,
    drop_former_members,
    drop_recorded_trainings,
    end_check,
    incidents_of,
    note_speed,
    shortfall,
)
from tasks.passport import issue_passport
from tasks.promote import Judged, bring_in_line, opened_ledger, promote, with_outcome
from tasks.register import Registered, RunInputs, missing_sentences, model_name, register, run_inputs
from tasks.report import RunEnd, report, shown_facts
from tasks.stage import Outcome, bring_up_to_date, noted, stage_edges, stage_names, survey
from tasks.training_costs import note_seconds
from tasks.version import version

if TYPE_CHECKING:
    from segmill.metrics.intervals import Interval

# What a caller has read, by folder. No parameters of the flow: Prefect's server keeps those, and shows them, and an
# address in params.yaml may hold a password.
_read: dict[str, tuple[Params, str]] = {}
_ended: dict[str, dict[str, Any]] = {}  # what came of a run, by folder, until Prefect knows that it is over
CHECK = "check members"
READING_DATA = ("fingerprint", "validate", "prepare")
AFTER_TRAINING = ("ensemble", "evaluate")
MEMBER_BYTES = 300 * 2**20


def steps(params: Params) -> list[str]:
    """Return every step of the flow in its order."""
    return ["version", *stage_names(params), "register", "promote", "report"]


def dependencies(workspace: Workspace) -> dict[str, set[str]]:
    """Return, per step, the steps it directly depends on: dvc.yaml's edges, and those of what is no stage."""
    refuse_incomplete_pipeline(workspace)
    stages = stage_edges(workspace)
    for name in ("validate", "prepare"):  # they read the data
        stages[name].add("version")
    for name in stages:
        if name.startswith("finetune@"):
            stages[name].add(CHECK)
    after = {"register": {"evaluate"}, "promote": {"register"}, "report": {"promote"}}
    return {"version": set(), **stages, CHECK: {"fingerprint"}, **after}


def reason(workspace: Workspace, params: Params, data: DataVersion) -> str:
    """Say in a few words why there is something to do."""
    if data.state in ("added", "changed"):
        return "new data"
    stale = [outcome for outcome in survey(workspace, params).values() if outcome.state == "stale"]
    first = next((outcome for outcome in stale if outcome.stage != "fingerprint"), None)
    if first is None:
        return "another verdict"
    if first.why == "never ran here" and not first.stage.startswith("finetune@"):
        return "first run"
    if f"{params.data.path} changed" in first.why:
        return "new data"  # that `segmill data add` has recorded
    return shorten(f"{first.stage}: {first.why}", 100, placeholder=" ...")


def run_retrain(
    workspace: Workspace,
    params: Params,
    params_yaml: str,
    console: Console,
    settle: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run the flow with its progress in the terminal; keep what came of it for `segmill status`.

    ``params`` were read from the text ``params_yaml``, which is recorded: the file may be edited meanwhile. ``settle``
    is called when every member is known to be buildable, before the first step.
    Ray and Prefect's server start while MLflow is imported, and the members are built on Ray meanwhile: each takes
    seconds.
    """
    began = time.monotonic()
    end_with_this_process(temporary_folder=True)
    refuse_full_disk(workspace, params)
    if signer := ensure_signer(workspace.root):
        console.print(signer, highlight=False, soft_wrap=True)
    interrupted.begin(workspace)
    try:
        with showing(workspace, steps(params), console), connecting(ray_address(params)):
            wait_for_server = starting_server()
            tracking.warm_up()
            with connect(ray_address(params)):
                building = begin_check(workspace, params)
                wait_for_server()
                end_check(workspace, params, building)
                settle()
                _read[str(workspace.root)] = params, params_yaml
                result = run_flow(lambda: retrain(str(workspace.root)), _ended, str(workspace.root))
    except (SegmillError, OSError) as error:
        if isinstance(error, OSError):
            error = _of_the_disk(error, str(workspace.root))
        progress.report_failure(workspace.last_run, finished=_now(), outcome=f"failed: {error}")
        interrupted.end(workspace, settled=not is_silent())
        raise error
    result["seconds"] = round(time.monotonic() - began, 1)
    result["outcome"] += f", in {clock(result['seconds'])}"
    progress.report(workspace.last_run, **result)
    interrupted.end(workspace, settled=not is_silent())
    return result


@flow(
    name="retrain",
    flow_run_name="retrain {folder}",
    task_runner=ThreadPoolTaskRunner(max_workers=16),  # type: ignore[arg-type]
    persist_result=False,
)
def retrain(folder: str) -> dict[str, Any]:
    """Bring the workspace at ``folder`` up to date and return what came of it, as plain values.

    params.yaml is read once per run, here or by ``run_retrain``.
    """
    workspace = Workspace.open(folder)
    params, params_yaml = _read.pop(folder) if folder in _read else read_params_and_text(workspace.params)
    ensure_signer(workspace.root)
    uri, began = tracking_uri(workspace, params), time.monotonic()
    with suppress(httpx.HTTPError):  # Prefect's server fell silent, which `run_flow` says at the end
        claim_run()
    with ExitStack() as alone, ExitStack() as reading_data, ExitStack() as after_verdict, connect(ray_address(params)):
        check = begin_check(workspace, params)
        reading_data.enter_context(writing(workspace, Part.DATA, "segmill retrain", wait=True))
        graph = PipelineGraph(dependencies(workspace))
        data = graph.run("version", version_step, workspace, params)
        model, members = model_name(workspace, params), list(params.members)
        alone.enter_context(one_run(workspace, params, model))
        noticed = bring_in_line(workspace, params, uri, opened_ledger(workspace, params), model)
        inputs = run_inputs(workspace, params, params_yaml)  # after that may have committed the ledger's head
        refuse_unsigned_champion(workspace, params, inputs.model)
        settle(workspace, params, inputs.model)
        with suppress(httpx.HTTPError):
            name_run(f"{inputs.model} data {data.md5[:8]}: {reason(workspace, params, data)}")
        artifacts = artifact_location(workspace, uri)
        named = f"data {data.md5[:8]}"
        with (
            tracking.open_run(uri, inputs.model, named, members, workspace.unsent, artifacts=artifacts) as run,
            saying_alive(run),
        ):
            outcomes = [graph.run(stage, stage_step, workspace, params, stage) for stage in READING_DATA]
            refuse_what_cannot_be_judged(workspace, params, uri, inputs.model)
            reading_data.close()  # from here the packed splits are read: `segmill data add` is allowed
            outcomes.append(graph.run("augment", stage_step, workspace, params, "augment"))
            graph.run(CHECK, check_members_step, workspace, params, check)
            drop_former_members(workspace, params)
            trained = train_members(graph, finetune_step, workspace, params, run)
            outcomes += trained.outcomes
            params, members = trained.params, list(trained.params.members)
            outcomes += [graph.run(stage, stage_step, workspace, params, stage) for stage in AFTER_TRAINING]
            registered = graph.run("register", register_step, workspace, params, run, outcomes, inputs)
            registered = replace(registered, missing=trained.missing)
            judged = graph.run("promote", promote_step, workspace, params, uri, registered)
            after_verdict.enter_context(with_outcome(judged.outcome))
            mended = [said for name in members for said in progress.incidents(incidents_of(workspace, name))]
            short = {name: said for name in members if (said := shortfall(workspace, params, name))}
            for name, said in short.items():
                tracking.set_tags(uri, run.members[name], {"warning": said})
            warnings = [*noticed, *judged.noticed, *missing_sentences(trained.missing), *short.values(), *mended]
            result = summary(workspace, data, outcomes, registered, judged) | {"warnings": warnings}
            end = RunEnd(
                data_version=data.md5, outcomes=outcomes, registered=registered, judged=judged,
                warnings=result["warnings"], next_steps=next_steps(result), seconds=time.monotonic() - began,
            )  # fmt: skip
            miou = graph.run("report", report_step, workspace, params, run, end)["miou"]
            shown = {
                "interval": shown_interval(miou),
                "facts": shown_facts(workspace, params, end),
                "links": links(run, registered),
            }
            described = markdown(result | shown)
            tracking.describe(run, described)
            tags = version_tags(judged, miou)
            tracking.set_tags(uri, run.id, tags)
            registry.describe_version(uri, registered.model, registered.version, described, tags)
    send_unsent(workspace, params)
    deliver_pending(workspace, params)
    if source_of(workspace.root):
        publish_results(workspace)  # the ledger's head is committed since
    with suppress(httpx.HTTPError):
        publish(result, workspace.overview)
    _ended[folder] = result
    return result


def one_run(workspace: Workspace, params: Params, model: str) -> AbstractContextManager[Any]:
    """Be the only run that retrains the model, on any machine, while the block runs; a nightly run is that already."""
    if holds(model):
        return nullcontext()
    url = ledger_url(workspace.root, params.promotion.ledger_url)
    return leased(url, model, f"`segmill retrain` in {workspace.root}")


def _of_the_disk(error: OSError, folder: str) -> OSError:
    """Return the error with its folder; one without a number would lose its words by that, so a full disk gets one."""
    if error.errno is None and is_of_a_full_disk(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
    if error.errno is not None and error.filename is None:
        error.filename = folder
    return error


def refuse_full_disk(workspace: Workspace, params: Params) -> None:
    """Raise InputError where a run is sure to fill the disk: rather now than in the middle of a training.

    The set is stored in the workspace, the cache, the remote and the packed splits; a member in its checkpoint, its
    folder, the ensemble, the cache twice and the registry.
    """
    data_bytes = sum(path.stat().st_size for path in (workspace.root / params.data.path).rglob("*") if path.is_file())
    needed = 3 * data_bytes + len(params.members) * MEMBER_BYTES
    free = free_bytes(workspace.root)
    if free < needed:
        raise InputError(
            f"the disk is full: {free / 2**20:.0f} MiB free on the disk of {workspace.root}, and a run may take about "
            f"{needed / 2**20:.0f} MiB; free some space and run again"
        )


def _is_retryable(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result()
    except (ClusterLost, WorkersLost):
        return False
    except InfrastructureError:
        return True
    except Exception:
        return False
    return False


# Only what talks to a server is tried again, and only where that did not answer. With the seconds that each try takes
# of a server which answers 500, and what follows, the run ends within 60 s.
_step: Any = partial(task, persist_result=False, cache_policy=NO_CACHE)
_talking_step: Any = partial(_step, retries=2, retry_delay_seconds=[3, 11], retry_condition_fn=_is_retryable)


@_step(name="stage", task_run_name="{stage}")
def stage_step(workspace: Workspace, params: Params, stage: str) -> Outcome:
    with logged(workspace, stage):
        return bring_up_to_date(workspace, stage, params)


@_talking_step(name="version", task_run_name="version")
def version_step(workspace: Workspace, params: Params) -> DataVersion:
    with logged(workspace, "version"), noted(workspace, "version"):
        return version(workspace, params)


@_step(name=CHECK, task_run_name=CHECK)
def check_members_step(workspace: Workspace, params: Params, begun: Running[None] | None) -> None:
    end_check(workspace, params, begun)


@partial(_talking_step, retries=2, retry_delay_seconds=5)(name="finetune", task_run_name="finetune@{member}")
def finetune_step(workspace: Workspace, params: Params, member: str, run: tracking.Run) -> Outcome:
    growing, final = curves_path(workspace, member), workspace.member(member) / "curves.csv"
    growing.unlink(missing_ok=True)
    with logged(workspace, f"finetune@{member}"), tracking.following(run, member, growing, final):
        try:
            outcome = bring_up_to_date(workspace, f"finetune@{member}", params)
        finally:
            TRAININGS.withdraw(member)
            log_incidents(workspace, member, get_run_logger().warning)
        drop_recorded_trainings(workspace, member)
    if outcome.state == "ran":
        with suppress(OSError):  # a cache of the user that can't be written stops no run
            note_speed(workspace, params, member)
            note_seconds(workspace, params, member)
    return outcome


@_talking_step(name="register", task_run_name="register")
def register_step(
    workspace: Workspace, params: Params, run: tracking.Run, outcomes: list[Outcome], inputs: RunInputs
) -> Registered:
    with logged(workspace, "register"), noted(workspace, "register"):
        return register(workspace, params, run, outcomes, inputs)


@_talking_step(name="promote", task_run_name="promote")
def promote_step(workspace: Workspace, params: Params, uri: str, registered: Registered) -> Judged:
    with logged(workspace, "promote"), noted(workspace, "promote"):
        return promote(workspace, params, uri, registered)


@_talking_step(name="report", task_run_name="report")
def report_step(workspace: Workspace, params: Params, run: tracking.Run, end: RunEnd) -> dict[str, Interval]:
    with logged(workspace, "report"), noted(workspace, "report"):
        scores = report(workspace, params, run, end)
        issue_passport(workspace, params, run, end)
        return scores


def logged(workspace: Workspace, step: str) -> AbstractContextManager[None]:
    """Log to Prefect, while the block runs, what the terminal says of the step."""
    return telling(workspace, [step], get_run_logger().info)


def summary(
    workspace: Workspace, data: DataVersion, outcomes: list[Outcome], registered: Registered, judged: Judged
) -> dict[str, Any]:
    """Return what there is to say of a run, as plain values."""
    return {
        "finished": _now(),
        "data_version": data.md5,
        "stages": {outcome.stage: {"state": outcome.state, "why": outcome.why} for outcome in outcomes},
        "model": registered.model,
        "version": registered.version,
        "verdict": {"decision": judged.decision, "reasons": judged.reasons},
        "outcome": judged.outcome,
        "scores": run_scores(progress.read(workspace.metrics) or {}, judged.facts),
        "git_commit": registered.git_commit,
        "compared_with": judged.rival,
        "report": str(workspace.page),
    }


def links(run: tracking.Run, registered: Registered) -> dict[str, str]:
    """Return the pages of MLflow that lead on from a version's."""
    own = {"model": registered.model, "version": registered.version}
    return {
        "passport, among the files of the model": passport.page(run.uri, **own),
        "run": tracking.run_page(run.uri, run.id),
    }


def version_tags(judged: Judged, miou: Interval) -> dict[str, str]:
    """Return what MLflow's page of a version says of its verdict, to search and sort by."""
    gain = {key: str(value) for key, value in judged.facts.items() if key in ("gain", "gain_low", "gain_high")}
    return {
        "verdict": judged.decision,
        "compared_with": f"version {judged.rival}" if judged.rival else "none",
        "test_miou_low": str(miou.low),
        "test_miou_high": str(miou.high),
        **gain,
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
