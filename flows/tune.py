"""The flow `tune`: the settings a member trains best with, and whether they beat the current ones beyond noise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console

from flows.display import showing
from flows.environment import artifact_location, ray_address, tracking_uri
from flows.pipeline_graph import PipelineGraph
from flows.prefect_server import start_server
from flows.retrain import READING_DATA, _step, dependencies, stage_step, version_step
from flows.trials import logged, watched
from segmill.cluster.connection import connect, connecting
from segmill.cluster.resources import Resources
from segmill.cluster.work import on_ray, wait
from segmill.errors import InputError, near_miss
from segmill.models.checking import check_members
from segmill.params import Params, parse_params, read_params
from segmill.training.job import TrainData
from segmill.tuning.jobs import (
    EvidenceJob,
    RepeatJob,
    SearchJob,
    evidence_on_ray,
    repeat_on_ray,
    search_on_ray,
)
from segmill.tuning.space import (
    Dimension,
    combinations,
    default_searches,
    network_names,
    read_space,
    read_values,
    upstream,
    value_at,
    with_values,
)
from segmill.tuning.trials import Study, Trial, Work, best_trial, read_trials
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing
from tasks.augment import augment
from tasks.finetune import network_to_check, train_data, train_job, warm_start
from tasks.inputs import read_code
from tasks.prepare import prepare
from tasks.register import model_name

MINUTES = 60.0  # of a search for which no budget is given


def what_is_searched(
    workspace: Workspace, params: Params, member: str, searches: Sequence[str]
) -> tuple[list[str], list[Dimension]]:
    """Return ``searches``, or the member's default where there are none, as text and as read.

    Raises InputError where there is no such network, or the search can't be read.
    """
    values = read_values(workspace.params)
    refuse_other_than_network(params, member)
    texts = list(searches) or default_searches(values, member)
    return texts, read_space(texts, values, member)


def run_tune(
    workspace: Workspace,
    params: Params,
    member: str,
    searches: list[str],
    *,
    minutes: float | None,
    trials: int | None,
    epochs: int | None,
    repeats: int,
) -> dict[str, Any]:
    """Search, repeat the winner, write ``tuning/MEMBER`` and return the evidence.

    Args:
        member: a network of params.yaml.
        searches: as ``space.read_space`` takes them.
        minutes, trials: the budget; an hour where neither is given. The same command resumes what an earlier one left,
            and only trains what a larger budget allows besides.
        epochs: of each trial; the member's own where left out.
        repeats: more seeds of the winner and of the current params.yaml.

    Raises:
        InputError: no trial came to its end.
        InfrastructureError: Ray or MLflow does not answer.
    """
    if minutes is None and trials is None:
        minutes = MINUTES
    with connecting(ray_address(params)):
        start_server()
        found: dict[str, Any] = tune(str(workspace.root), member, searches, minutes, trials, epochs, repeats)
    return found


@flow(
    name="tune",
    flow_run_name="tune {member} in {folder}",
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]
    persist_result=False,
)
def tune(
    folder: str,
    member: str,
    searches: list[str],
    minutes: float | None,
    trials: int | None,
    epochs: int | None,
    repeats: int,
) -> dict[str, Any]:
    """Search the settings of ``member`` in the workspace at ``folder`` and return the evidence, as plain values."""
    workspace = Workspace.open(folder)
    params, values = read_params(workspace.params), read_values(workspace.params)
    space = read_space(searches, values, member)
    present = present_values(space, values, member)
    console = Console()
    with connect(ray_address(params)):
        reading_data = writing(workspace, Part.DATA, f"segmill tune {member}", wait=True)
        with showing(workspace, ["version", *READING_DATA, "augment"], console), reading_data:
            graph = PipelineGraph(dependencies(workspace))
            graph.run("version", version_step, workspace, params)
            for stage in (*READING_DATA, "augment"):
                graph.run(stage, stage_step, workspace, params, stage)
            work = ready_step(workspace, params, values, space, member, epochs)
        study, keys = Study(work.folder), [dimension.key for dimension in space]
        with (
            watched(study, keys, minutes, console),
            logged(study, tracking_uri(workspace, params), *mlflow_names(workspace, params, member), workspace.unsent),
        ):
            search_step(work, space, trials, minutes, present, repeats)
            repeat_step(work, present, repeats)
            found: dict[str, Any] = evidence_step(workspace, params, work, space, present, repeats)
            return found


@_step(name="ready")
def ready_step(
    workspace: Workspace,
    params: Params,
    values: dict[str, Any],
    space: list[Dimension],
    member: str,
    epochs: int | None,
) -> Work:
    """Make what the trials read, and see that every network of the search can be built."""
    job = train_job(workspace, params, member, Path(), warm_start(workspace, params, member))
    text = json.dumps([job.inputs_hash, [str(dimension) for dimension in space], epochs])
    study = workspace.scratch / "tuning" / f"{member}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    data = [
        (chosen, made_data(workspace, parse_params(with_values(values, member, chosen), "--search"), chosen))
        for chosen in combinations(upstream(space))
        if chosen
    ]
    work = Work(
        folder=study,
        member=member,
        values=values,
        job=job,
        epochs=epochs,
        data=(*data, ({}, job.data)),
        cpus=job.workers.cpus * job.workers.count,
        gpus=job.workers.gpus * job.workers.count,
    )
    built = ("backbone", "decoder", "weights", "decoder_width", "attention", "context")
    networks = [one for one in space if one.kind == "choice" and one.key.rpartition(".")[2] in built]
    chosen_networks = [
        parse_params(with_values(values, member, chosen), "--search").network_of(member)
        for chosen in combinations(networks)
    ]
    wait(on_ray(check_members, tuple(network_to_check(member, network) for network in chosen_networks)))
    return work


@_step(name="search")
def search_step(
    work: Work,
    space: list[Dimension],
    trials: int | None,
    minutes: float | None,
    present: dict[str, Any] | None,
    repeats: int,
) -> None:
    """Run the trials; the process that leads Ray Tune takes no CPU of its own."""
    job = SearchJob(work=work, space=tuple(space), trials=trials, minutes=minutes, present=present, repeats=2 * repeats)
    wait(on_ray(search_on_ray, job, Resources(num_cpus=0)))


@_step(name="repeat")
def repeat_step(work: Work, present: dict[str, Any] | None, repeats: int) -> None:
    """Train the winner and the current params.yaml with more seeds, as many at once as the cluster holds."""
    winner = winner_of(work)
    if not repeats or winner.values == present:
        return
    wanted = [(present or {}, work.seed + repeat) for repeat in range(repeats + 1)]
    wanted += [(winner.values, work.seed + repeat) for repeat in range(1, repeats + 1)]
    resources = Resources(work.cpus, work.gpus)
    jobs = [RepeatJob(work=work, values=chosen, seed=seed) for chosen, seed in wanted]
    for running in [on_ray(repeat_on_ray, job, resources) for job in jobs]:
        wait(running)


@_step(name="evidence")
def evidence_step(
    workspace: Workspace,
    params: Params,
    work: Work,
    space: list[Dimension],
    present: dict[str, Any] | None,
    repeats: int,
) -> dict[str, Any]:
    """Write patch.yaml, trials.csv and the page into ``tuning/MEMBER``."""
    winner_of(work)
    job = EvidenceJob(
        work=work,
        space=tuple(space),
        out_dir=workspace.root / "tuning" / work.member,
        present=present,
        repeats=repeats,
        confidence=params.promotion.confidence,
    )
    return wait(on_ray(evidence_on_ray, job))


def winner_of(work: Work) -> Trial:
    """Return the best trial of the search; InputError where none came to its end, with what the first one said."""
    trials = read_trials(Study(work.folder))
    winner = best_trial([trial for trial in trials if trial.values and trial.seed == work.seed])
    if winner is not None:
        return winner
    failed = [trial.why for trial in trials if trial.state == "failed"]
    if failed:
        raise InputError(f"no trial was completed; the first that failed said: {failed[0]}")
    raise InputError(
        "no trial was completed in this time; give more --minutes or fewer --epochs (the same command resumes "
        "the trials that have begun)"
    )


def made_data(workspace: Workspace, params: Params, chosen: dict[str, Any]) -> TrainData:
    """Return what a training reads with other values of prepare and augment, made by the tasks' own functions once.

    It is in a workspace of its own inside the scratch folder, which shares data and manifest with the real one.
    """
    text = json.dumps(
        [
            params.prepare.model_dump(mode="json"),
            params.augment.model_dump(mode="json"),
            hashlib.sha256(workspace.manifest.read_bytes()).hexdigest(),
            *(read_code(workspace, stage) for stage in ("prepare", "augment")),
        ]
    )
    root = workspace.scratch / "tuning" / "data" / hashlib.sha256(text.encode()).hexdigest()[:12]
    shadow = Workspace(root)
    whole = root / "whole"
    if not whole.is_file():
        shared = [(workspace.root / params.data.path, root / params.data.path), (workspace.manifest, shadow.manifest)]
        shared.append((workspace.code, shadow.code))
        if not any(key.startswith("prepare.") for key in chosen):
            shared.append((workspace.packed, shadow.packed))
        for real, link in shared:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(real.resolve())
        if not shadow.packed.is_symlink():
            prepare(shadow, params)
        augment(shadow, params)
        whole.touch()
    return train_data(shadow, params)


def present_values(space: Sequence[Dimension], values: dict[str, Any], member: str) -> dict[str, Any] | None:
    """Return what the searched keys are now; None where they are not in the search space."""
    now = {dimension.key: value_at(values, member, dimension.key) for dimension in space}
    inside = all(one.holds(now[one.key]) and one.tidy(now[one.key]) == now[one.key] for one in space)
    return now if inside else None


def refuse_other_than_network(params: Params, member: str) -> None:
    """Raise InputError unless ``member`` is a network of params.yaml."""
    networks = network_names(params)
    if member in networks:
        return
    if member in params.members:
        raise InputError(f"{member} is an svm, which chooses its regularisation itself; tune a network")
    raise InputError(f"there is no member {member!r}{near_miss(member, networks)} (networks: {', '.join(networks)})")


def mlflow_names(workspace: Workspace, params: Params, member: str) -> tuple[str, str, str | None]:
    """Return the experiment, the run's name, and where a new experiment keeps files."""
    uri = tracking_uri(workspace, params)
    return model_name(workspace, params), f"tune {member}", artifact_location(workspace, uri)
