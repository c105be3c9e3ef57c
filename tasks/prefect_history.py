"""Old flow runs of a model in Prefect's database: found and deleted, with their task runs and logs, by its API."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from segmill.cluster.work import first_line
from segmill.errors import InfrastructureError
from segmill.retention.plan import Removal
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

AT_ONCE = 200  # what one answer of Prefect's API holds


def has_old_runs(workspace: Workspace, before_s: float) -> bool:
    """Tell whether it is worth to ask Prefect: always of a server, else where the workspace's own database has any."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    database = workspace.prefect_home / "prefect.db"
    if not database.is_file():
        return False
    before = datetime.fromtimestamp(before_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            return (
                connection.execute("SELECT 1 FROM flow_run WHERE end_time < ? LIMIT 1", (before,)).fetchone()
                is not None
            )
        except sqlite3.Error:  # another release's tables, or it is busy: Prefect itself knows
            return True


def old_flow_runs(workspace: Workspace, model: str, before_s: float) -> list[Removal]:
    """Return the flow runs of a model that ended before ``before_s``, seconds since 1970.

    Of a server that others use too, those are the runs that name the model or this workspace's folder. Prefect does not
    say how many bytes they take. Raises InfrastructureError where its server does not answer.
    """
    if not has_old_runs(workspace, before_s):
        return []
    before = datetime.fromtimestamp(before_s, UTC)
    shared = bool(os.environ.get("PREFECT_API_URL"))
    return [
        Removal("prefect", f"flow run {run.name}", f"ended before {before:%Y-%m-%d}", str(run.id))
        for run in _ended(before)
        if not shared or _is_ours(run, model, workspace)
    ]


def delete_old_runs(runs: Iterable[Removal]) -> None:
    """Delete flow runs; those that are gone already are passed over."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    runs = list(runs)
    if not runs:
        return
    with _asked(), get_client(sync_client=True) as client:
        for run in runs:
            try:
                client.delete_flow_run(UUID(run.key))
            except ObjectNotFound:
                continue


@contextmanager
def _asked() -> Iterator[None]:
    from httpx import HTTPError

    try:
        yield
    except (HTTPError, RuntimeError) as error:  # Prefect's client raises the latter where it finds no API
        raise InfrastructureError(
            f"Prefect does not answer ({first_line(error)}); start it, or set keep.prefect_days to null"
        ) from error


def _ended(before: datetime) -> Iterator[FlowRun]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime
    from prefect.client.schemas.sorting import FlowRunSort

    ended: Any = FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))
    with _asked(), get_client(sync_client=True) as client:
        for start in range(0, 10**9, AT_ONCE):
            found = client.read_flow_runs(
                flow_run_filter=ended, sort=FlowRunSort.START_TIME_ASC, limit=AT_ONCE, offset=start
            )
            yield from found
            if len(found) < AT_ONCE:
                return


def _is_ours(run: FlowRun, model: str, workspace: Workspace) -> bool:
    named = {str(value) for value in (run.parameters or {}).values()}
    return run.name.startswith(f"{model} ") or bool(named & {model, str(workspace.root)})
