"""The members' trainings of one run, the longest first, and what becomes of a run where some of them fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture

from flows.pipeline_graph import PipelineGraph
from segmill import progress, tracking
from segmill.cluster.queue import TRAININGS, planned
from segmill.cluster.waiting import ClusterLost
from segmill.errors import InfrastructureError, InputError, Interrupted, SegmillError
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.finetune import incidents_of, slots, stacks_of
from tasks.stage import Outcome
from tasks.training_costs import expected_seconds

MOST_SHOWN = 20_000  # characters of stacks in a log


@dataclass(frozen=True)
class TrainedMembers:
    """What the trainings came to.

    ``params``: as the run had them, without the members that failed. ``missing``: for each of those, why.
    """

    outcomes: list[Outcome]
    params: Params
    missing: dict[str, str]


def train_members(
    graph: PipelineGraph, step: Task[..., Any], workspace: Workspace, params: Params, run: tracking.Run
) -> TrainedMembers:
    """Bring every member up to date, in a thread of its own each; those that take longest begin first.

    Where members fail after their retries, the run continues without them if ``ensemble.min_members`` allows; their
    runs in MLflow end as FAILED, and the next run trains them.

    Raises what went wrong otherwise: one member's fault stops no other, and all are said.
    """
    for name in params.members:
        for of_a_run_before in (incidents_of(workspace, name), stacks_of(workspace, name)):
            of_a_run_before.unlink(missing_ok=True)
    in_order = planned(expected_seconds(workspace, params), slots(params))
    TRAININGS.expect({name: float(len(in_order) - number) for number, name in enumerate(in_order)})
    begun = {name: graph.submit(f"finetune@{name}", step, workspace, params, name, run) for name in in_order}
    outcomes, faults = every_result({name: begun[name] for name in params.members})
    if not may_continue(params, faults):
        raise_all(faults)
    for name in faults:
        graph.leave_out(f"finetune@{name}")
        tracking.drop_member(run, name)
    missing = {name: reason(fault) for name, fault in faults.items()}
    return TrainedMembers(outcomes, params.without_members(faults), missing)


def log_incidents(workspace: Workspace, name: str, say: Callable[[str], None]) -> None:
    """Say what went wrong in the member's training and was mended, and show the stacks where it was stuck."""
    for incident in progress.incidents(incidents_of(workspace, name)):
        say(incident)
    stacks = stacks_of(workspace, name)
    if stacks.is_file() and (text := stacks.read_text(errors="replace")):
        say(f"where member {name} was stuck:\n{text[-MOST_SHOWN:]}")


def every_result(futures: Mapping[str, PrefectFuture[Outcome]]) -> tuple[list[Outcome], dict[str, Exception]]:
    """Wait for all members; return what became of each, or went wrong with it."""
    outcomes: list[Outcome] = []
    faults: dict[str, Exception] = {}
    for name, future in futures.items():
        try:
            outcomes.append(future.result())
        except Exception as fault:
            faults[name] = fault
    return outcomes, faults


def may_continue(params: Params, faults: Mapping[str, Exception]) -> bool:
    """Whether enough members are left; never where the run was stopped or the cluster is gone."""
    if any(isinstance(fault, Interrupted | ClusterLost) for fault in faults.values()):
        return False
    wanted = params.ensemble.min_members or len(params.members)
    return not faults or len(params.members) - len(faults) >= wanted


def raise_all(faults: Mapping[str, Exception]) -> None:
    """Raise the fault, or one that says each of several: of the infrastructure where all are.

    One that is no sentence of ours comes first, with its traceback.
    """
    said = {str(fault): fault for fault in sorted(faults.values(), key=lambda fault: isinstance(fault, SegmillError))}
    first = next(iter(said.values()))
    if len(said) == 1 or not isinstance(first, SegmillError):
        raise first
    infrastructure = all(isinstance(fault, InfrastructureError) for fault in said.values())
    raise (InfrastructureError if infrastructure else InputError)("\n".join(said))


def reason(fault: Exception) -> str:
    """Return why a member failed, in one line: of a traceback the last."""
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    return " ".join(lines) if isinstance(fault, SegmillError) else lines[-1]
