"""What runs left that were killed or could not reach a server: sent, and ended, by a later command."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flows.environment import tracking_uri
from segmill import owner
from segmill.alongside import alongside
from segmill.errors import InfrastructureError
from segmill.params import Params
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.tracking import Run


def send_unsent(workspace: Workspace, params: Params) -> int:
    """Send to MLflow what earlier commands could not; return how many updates still wait.

    Takes no time where none waits.
    """
    if not any(workspace.unsent.glob("*.json")):
        return 0
    from segmill import tracking

    return tracking.send_kept(tracking_uri(workspace, params), workspace.unsent)


def settle(workspace: Workspace, params: Params, model: str) -> None:
    """Send what waits, and end the runs in MLflow and Prefect whose process is gone; for the workspace's only writer.

    Raises InfrastructureError where MLflow does not answer; a Prefect server that does not is asked the next time.
    """
    import httpx

    from flows.prefect_server import end_abandoned_flow_runs
    from segmill.abandoned import end_abandoned_runs

    send_unsent(workspace, params)
    end_abandoned_runs(tracking_uri(workspace, params), model)
    with suppress(httpx.HTTPError):
        end_abandoned_flow_runs(workspace.prefect_home)
        workspace.unsettled.unlink(missing_ok=True)


@contextmanager
def saying_alive(run: Run) -> Iterator[None]:
    """Say every minute, while the block runs, at servers of MLflow and Prefect that the run's process is alive.

    Other machines, which can't look for the process, end the run there when it no longer does; see ``settle``.
    """
    import httpx
    from prefect.runtime import flow_run

    from flows.prefect_server import claim_run
    from segmill import tracking

    flow_run_id = str(flow_run.id) if os.environ.get("PREFECT_API_URL") else ""

    def say(over: threading.Event) -> None:
        last = False
        while not last:
            with suppress(InfrastructureError, OSError):
                tracking.set_tags(run.uri, run.id, owner.beat())
            if flow_run_id:
                with suppress(httpx.HTTPError):
                    claim_run(flow_run_id)
            last = over.wait(owner.BEAT_EVERY_S)

    if run.uri.startswith("sqlite"):
        yield
    else:
        with alongside(say):
            yield
