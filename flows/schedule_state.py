"""The schedule's part of `segmill status`: the next run, the last ones, and why one is late."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.deploy import FLOW, in_words, prefect_client, read_deployment
from segmill.errors import SegmillError
from segmill.promotion.lease import Holder, who_holds
from segmill.promotion.ledger_url import ledger_url
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params

PATIENCE_S = 5.0  # for each answer of Prefect's server
LATE_AFTER = timedelta(seconds=30)  # a worker asks for work every 15 s
SHOWN = 5
ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
ACTIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)


@dataclass(frozen=True)
class Late:
    """Runs that were due and have not begun their work: since when, how many, why."""

    since: str
    runs: int
    why: str


@dataclass(frozen=True)
class ScheduleState:
    """What Prefect's server says of a model's deployment. Times are local, ISO 8601.

    Attributes:
        deployment: its name, FLOW/MODEL.
        schedule: in words, by params.yaml.
        deployed: whether it is there; None where the server does not say.
        paused: whether people paused it.
        next: when the next run is due; None: none is.
        last: the last runs that ended, the latest first: name, state, when due, began and ended, message.
        running: those that run.
        late: None where nothing is late.
        error: why the server says nothing.
    """

    deployment: str
    schedule: str
    deployed: bool | None = None
    paused: bool = False
    next: str | None = None
    last: list[dict[str, Any]] = field(default_factory=list)
    running: list[dict[str, Any]] = field(default_factory=list)
    late: Late | None = None
    error: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what `segmill status --json` prints."""
        return asdict(self)


def schedule_state(workspace: Workspace, params: Params, model: str) -> ScheduleState:
    """Ask Prefect's server; where it does not answer in time, that is the state."""
    named, schedule = f"{FLOW}/{model}", in_words(params.schedule)
    try:
        with prefect_client(params, PATIENCE_S) as client:
            found = read_deployment(client, model)
            if found is None:
                return ScheduleState(named, schedule, deployed=False)
            return _state(client, workspace, params, model, found)
    except SegmillError as error:
        return ScheduleState(named, schedule, error=str(error))


def _state(
    client: SyncPrefectClient, workspace: Workspace, params: Params, model: str, found: DeploymentResponse
) -> ScheduleState:
    now = datetime.now(UTC)
    scheduled = _runs(client, found, (StateType.SCHEDULED,), FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC, 200)
    active = _runs(client, found, ACTIVE, FlowRunSort.START_TIME_ASC, SHOWN)
    holder = who_holds(ledger_url(workspace.root, params.promotion.ledger_url), model)
    # A run that waits for the lease runs, for Prefect.
    held_up = [run for run in active if holder and not holder.what.endswith(f" {run.name}")]
    due = [run for run in scheduled if (at := run.expected_start_time) and at < now - LATE_AFTER]
    late = None
    if waiting := [*held_up, *due]:
        since = min(at for run in waiting if (at := run.expected_start_time))
        why = _lease(holder) if held_up and holder else _why(client, found, holder)
        late = Late(str(_local(since)), len(waiting), why)
    coming = (at for run in scheduled if (at := run.expected_start_time) and at >= now - LATE_AFTER)
    return ScheduleState(
        f"{FLOW}/{model}", in_words(params.schedule), deployed=True, paused=found.paused,
        next=_local(min(coming, default=None)), late=late,
        last=_facts(_runs(client, found, ENDED, FlowRunSort.END_TIME_DESC, SHOWN)),
        running=_facts(run for run in active if run not in held_up),
    )  # fmt: skip


def _runs(
    client: SyncPrefectClient, found: DeploymentResponse, types: Iterable[StateType], sort: FlowRunSort, limit: int
) -> list[FlowRun]:
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[found.id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types))),
    )
    return client.read_flow_runs(flow_run_filter=wanted, sort=sort, limit=limit)


def _why(client: SyncPrefectClient, found: DeploymentResponse, holder: Holder | None) -> str:
    """Say why a run that is due was not begun: the first reason that alone is enough."""
    name = found.work_pool_name
    try:
        pool = client.read_work_pool(str(name))
    except ObjectNotFound:
        return f"the work pool {name} is gone; `segmill deploy` makes it"
    if pool.is_paused:
        return f"the work pool {name} is paused; `prefect work-pool resume {name}`"
    queue = client.request("GET", "/work_queues/{id}", path_params={"id": found.work_queue_id}).json()
    if queue["is_paused"]:
        resume = f"prefect work-queue resume {queue['name']} --pool {name}"
        return f"the work queue {queue['name']} of pool {name} is paused; `{resume}`"
    workers = client.read_workers_for_work_pool(str(name))
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        seen = max((worker.last_heartbeat_time for worker in workers if worker.last_heartbeat_time), default=None)
        last = f"; the last one was heard of at {_local(seen)}" if seen else ""
        return f"no worker polls the work pool {name}{last}; `prefect worker start --pool {name} --limit 1`"
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[str(name)]))
    busy = client.read_flow_runs(
        work_pool_filter=of_pool,
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(ACTIVE)))),
    )
    names = ", ".join(run.name for run in busy)
    for what, limit, number in (
        (f"the work pool {name}", pool.concurrency_limit, len(busy)),
        (f"the queue {queue['name']}", queue["concurrency_limit"], len(busy)),
        (
            f"the deployment {found.name}",
            found.global_concurrency_limit.limit if found.global_concurrency_limit else None,
            sum(run.deployment_id == found.id for run in busy),
        ),
    ):
        if limit is not None and number >= limit:
            return f"concurrency: {what} allows {limit} runs at a time ({names or 'none run'})"
    if busy:
        return f"concurrency: the worker is busy with {names}"
    if holder:
        return _lease(holder)
    return f"a worker polls the work pool {name} and has not begun it yet"


def _lease(holder: Holder) -> str:
    return f"the lease of {holder.model} is held by {holder}"


def _facts(runs: Iterable[FlowRun]) -> list[dict[str, Any]]:
    return [
        {
            "name": run.name,
            "state": run.state.name if run.state else None,
            "due": _local(run.expected_start_time),
            "began": _local(run.start_time),
            "ended": _local(run.end_time),
            "message": run.state.message if run.state else None,
        }
        for run in runs
    ]


def _local(at: datetime | None) -> str | None:
    return at.astimezone().isoformat(" ", "seconds") if at else None
