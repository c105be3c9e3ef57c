"""The deployed flow `nightly`: what `segmill retrain` does, by itself, one run per model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.commands.retrain import retrain
from flows.environment import prepare_environment
from flows.prefect_server import claim_run
from flows.source import open_source, run_source
from flows.stops import Stops, end_children
from flows.waiting_runs import end_dead, skip_waiting
from segmill.credentials import keep_from_helpers
from segmill.errors import GateRefused, InputError, SegmillError
from segmill.orphans import end_with_this_process
from segmill.params import read_params
from segmill.promotion.lease import Lease, leased
from segmill.promotion.ledger_url import ledger_url
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing
from tasks.collect import collect_after_run

FOREVER_S = 10 * 365 * 86400.0
# Prefect's clock, which says when a run was due, and the ledger's, which says when one began, may differ by so much.
CLOCKS_DIFFER = timedelta(seconds=60)


@flow(name="nightly", persist_result=False)
def nightly(
    model: str,
    workspace: str | None = None,
    source: str | None = None,
    changes: list[str] | None = None,
    max_hours: float | None = None,
) -> State[Any]:
    """Bring data, members, ensemble and verdict of a model up to date; a refused challenger is no failure.

    Where other runs of the same deployment wait, this one does their work, and they end as skipped.

    Args:
        model: The registered model's name; one run of it runs at a time.
        workspace: Folder of the workspace.
        source: GIT_URL[@BRANCH] that is cloned into an empty folder instead.
        changes: KEY=VALUE, each changes params.yaml first, as `segmill retrain --set` does.
        max_hours: Hours after which the run is stopped as failed.
    """
    with suppress(httpx.HTTPError):
        claim_run()
    keep_from_helpers()
    with Stops(max_hours) as stops:
        end_with_this_process(temporary_folder=True)  # the clone is in that folder
        try:
            with _opened(workspace, source) as opened:
                return _retrain(model, opened, source, list(changes or []), stops)
        except BaseException as error:
            if isinstance(error, BrokenPipeError):
                stops.silenced()
            end_children(str(flow_run.id))
            if stops.cancelled:
                return Cancelled(message=str(stops.error()))
            if stops.reason or isinstance(error, SegmillError):
                return Failed(message=str(stops.error() if stops.reason else error))
            raise


@contextmanager
def _opened(workspace: str | None, source: str | None) -> Iterator[Workspace]:
    if source:
        with TemporaryDirectory(prefix="clone-", ignore_cleanup_errors=True) as folder:
            yield open_source(source, Path(folder), get_run_logger().info)
    elif workspace:
        yield Workspace.open(Path(workspace))
    else:
        raise InputError("the run has no workspace", "deploy it again with `segmill deploy`")


def _retrain(model: str, workspace: Workspace, source: str | None, changes: list[str], stops: Stops) -> State[Any]:
    params, say = read_params(workspace.params), get_run_logger().info
    prepare_environment(workspace, params)
    url = ledger_url(workspace.root, params.promotion.ledger_url)
    named, work = f"nightly run {flow_run.name}", str(deployment.id)

    def run(there: Workspace) -> str:
        return retrain(there, named, changes, wait=True)

    with ExitStack() as held:
        # In the same order as `segmill retrain` by hand, or the two would wait for each other.
        held.enter_context(writing(workspace, Part.WORKSPACE, named, wait=True, say=say))
        lease = held.enter_context(leased(url, model, named, wait_s=FOREVER_S, say=say, on_lost=stops.lease_lost))
        if lease.died:
            end_dead(lease.died.removeprefix("nightly run "))
        if why := covered(lease, work, changes, flow_run.scheduled_start_time):
            return Completed(name="Skipped", message=why)
        if not changes:
            skip_waiting()
        try:
            # What was cloned before the lease may be an older commit by now.
            said = run_source(source, workspace.root, run, say, command=named, wait=True) if source else run(workspace)
            name = "Completed"
        except GateRefused as refused:
            name, said = "Refused", str(refused)
        if not changes:
            lease.complete(work)
        for sentence in collect_after_run(workspace, params):
            say(sentence)
    return Completed(name=name, message=said)


def covered(lease: Lease, work: str, changes: list[str], due: datetime) -> str:
    """Say which run began after this one was due and did all its work; "" where there is something to do."""
    before = lease.before
    if changes or before is None or before.work != work:
        return ""
    began = datetime.fromtimestamp(before.began_s, UTC)
    if began < due + CLOCKS_DIFFER:
        return ""
    return (
        f"skipped: {before.by}, which began at {began:%Y-%m-%d %H:%M:%S} UTC, after this one was due at "
        f"{due:%Y-%m-%d %H:%M:%S} UTC, did its work"
    )
