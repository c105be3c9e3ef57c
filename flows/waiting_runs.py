"""Runs of the same deployment as this one's: those that wait are skipped, the one that died is ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Crashed

from flows.stops import end_children

PAGE = 100  # runs that are read at once; Prefect's server allows 200


def skip_waiting() -> int:
    """Let this run do the work of all that are due with the same parameters; they end as skipped. Returns how many.

    After downtime these are the missed ones.
    """
    if not deployment.id:
        return 0
    now = datetime.now(UTC)
    began = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    why = f"skipped: run {flow_run.name}, which began at {began}, after this one was due, does its work"
    with get_client(sync_client=True) as client:
        # Runs that are about to start (pending) may get through; they find out when they have the lease.
        own = client.read_flow_run(flow_run.id).parameters  # as they were given: without those left out
        waiting = [run for run in _due(client, now) if run.parameters == own]
        for run in waiting:
            client.set_flow_run_state(run.id, Completed(name="Skipped", message=why))
    if waiting:
        get_run_logger().info("%d runs that were due before are skipped: this one does their work", len(waiting))
    return len(waiting)


def end_dead(name: str) -> None:
    """End at Prefect's server the run of this name that held the lease and is gone: nobody else would."""
    if not deployment.id:
        return
    of_name = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        name=FlowRunFilterName(any_=[name]),
        state=_in(StateType.RUNNING, StateType.CANCELLING),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=of_name):
            if str(run.id) != str(flow_run.id):
                end_children(str(run.id))
                gone = f"its process is gone; run {flow_run.name} took its lease over"
                client.set_flow_run_state(run.id, Crashed(message=gone), force=True)


def _due(client: SyncPrefectClient, now: datetime) -> Iterator[FlowRun]:
    due = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
        state=_in(StateType.SCHEDULED, StateType.PENDING),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=now),
    )
    offset = 0
    while page := client.read_flow_runs(flow_run_filter=due, limit=PAGE, offset=offset):
        yield from (run for run in page if str(run.id) != str(flow_run.id))
        offset += len(page)


def _in(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
