"""Prefect's server: one for the duration of a command where no other is named; and what its silence becomes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from segmill import owner
from segmill.errors import InfrastructureError, SegmillError
from segmill.orphans import end_with_this_process
from segmill.passwords import public_address

GONE = "its process ended without saying so; a later start noticed it"
_OPEN = [StateType.RUNNING, StateType.CANCELLING]
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_silent = threading.Event()


def start_server() -> None:
    """Start the server that Prefect's clients of this process then use; see ``starting_server``.

    Raises:
        InfrastructureError: it does not start.
    """
    starting_server()()


def starting_server() -> Callable[[], None]:
    """Begin to start that server, out of reach of the terminal's Ctrl-C; return what waits for it and raises as above.

    A terminal sends Ctrl-C to every process of a command. A server that ends at once leaves the flow asking it, for
    minutes; this one ends with this process. It inherits the blocked signal from the thread that starts it, while this
    thread can still be interrupted. What that thread imports is imported before: where two threads import at once, one
    may get a module that the other has only partly imported.
    """
    if not PREFECT_API_URL.value():
        import prefect.server.api.server  # noqa: F401
    end_with_this_process()
    logging.raiseExceptions = False  # what Prefect's log handler could not send is not to be printed line by line
    failed: list[BaseException] = []

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with get_client(sync_client=True):
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        if failed and isinstance(failed[0], RuntimeError):
            raise InfrastructureError(f"Prefect's server did not start ({str(failed[0]).splitlines()[0]}); try again")
        if failed:
            raise failed[0]

    return wait


def run_flow(flow: Callable[[], Any], ended: dict[str, dict[str, Any]], folder: str) -> dict[str, Any]:
    """Run a flow, and return what came of it also where Prefect's server does not answer any more at its end.

    Prefect's steps need no server; only a flow's begin and end do. What a flow that came to its end found is worth no
    less because Prefect does not know of it: a warning says so.

    Args:
        flow: calls it.
        ended: where the flow keeps what it returns, by folder, before Prefect learns that it is over.
        folder: of the workspace.

    Raises:
        InfrastructureError: the server did not answer, and the flow did not come to its end.
        SegmillError: what the flow raised.
    """
    ended.pop(folder, None)
    try:
        result: dict[str, Any] = flow()
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        _silent.set()
        where = public_address(PREFECT_API_URL.value() or "") or "started for this run"
        if folder in ended:
            result = ended.pop(folder)
            lost = f"Prefect's server ({where}) does not answer any more, so its pages do not show the end of this run"
            return result | {"warnings": [*result.get("warnings", ()), lost]}
        raise _reason(error) or InfrastructureError(
            f"Prefect's server ({where}) does not answer; start it, or unset prefect.api_url and PREFECT_API_URL, and "
            "run again: what is done is kept"
        ) from None
    ended.pop(folder, None)
    return result


def is_silent() -> bool:
    """Tell whether Prefect's server fell silent: its client would then hold up the end of the process for minutes."""
    return _silent.is_set()


def claim_run(run_id: str = "") -> None:
    """Say at Prefect's server that a flow run is this process's, which is alive; without an id the one it is called in.

    Raises httpx.HTTPError.
    """
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(run_id or str(flow_run.id)), dict(owner.beat()))


def end_abandoned_flow_runs(home: Path) -> int:
    """Set flow runs in state Running whose process is gone, and their tasks', to Crashed; return how many.

    A run that was killed before it could say whose it is counts as gone where the server's database is the workspace's
    own, in ``home``: whoever calls this is the only one that runs there. Raises httpx.HTTPError.
    """
    ours_alone = not PREFECT_API_URL.value() and Path(os.environ.get("PREFECT_HOME", "")) == home
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN)))
        )
        others = [run for run in found if str(run.id) != str(flow_run.id)]
        gone = [run.id for run in others if owner.is_over(run.labels) or (ours_alone and owner.TAG not in run.labels)]
        if not gone:
            return 0
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=gone)),
            task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_OPEN))),
        )
        for task in tasks:
            client.set_task_run_state(task.id, Crashed(message=GONE), force=True)
        for run_id in gone:
            client.set_flow_run_state(run_id, Crashed(message=GONE), force=True)
    return len(gone)


def _reason(error: BaseException) -> BaseException | None:
    """Return the error of ours that was to be reported to Prefect when it did not answer; None where there is none."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, SegmillError) or getattr(inner, "errno", None) in _OF_THE_DISK:
            return inner
        inner = inner.__context__
    return None
