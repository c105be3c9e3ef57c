"""What runs left that were killed or could not reach a server: sent, and ended, by a later command."""

from __future__ import annotations

from contextlib import suppress

from flows.environment import tracking_uri
from segmill.params import Params
from segmill.workspace import Workspace


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
