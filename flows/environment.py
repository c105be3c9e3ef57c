"""The environment every library is started with: quiet, offline, telemetry off, homes inside the workspace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
ARTIFACTS_VARIABLE = "MLFLOW_DEFAULT_ARTIFACT_ROOT"  # as `mlflow server` knows it
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "GIT_PYTHON_REFRESH": "quiet",
}

# A run waits 14 s for Prefect's server at each request; with Prefect's own five tries 62 s, several times at its end.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "3"}


def switch_telemetry_off() -> None:
    """Set what keeps every library from calling home and from talking over our own output.

    Child processes inherit it. A value already set stays.
    """
    for name, value in (TELEMETRY_OFF | QUIET).items():
        os.environ.setdefault(name, value)


def prepare_environment(workspace: Workspace, params: Params) -> None:
    """Point Prefect and MLflow at the workspace's servers. A standard environment variable already set wins.

    Must run before Prefect is imported: it reads its settings once.
    """
    os.environ.setdefault("PREFECT_HOME", str(workspace.prefect_home))
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    if params.prefect.api_url:
        os.environ.setdefault("PREFECT_API_URL", params.prefect.api_url)
    os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri(workspace, params))
    # 4 s of a server that answers 500; seven are 4 minutes, and the steps try again themselves.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def tracking_uri(workspace: Workspace, params: Params) -> str:
    """Return MLflow's address; a relative SQLite path is taken from the workspace."""
    from segmill import tracking

    return tracking.address(workspace.root, params.mlflow.tracking_uri)


def artifact_location(workspace: Workspace, uri: str) -> str | None:
    """Return where a new experiment keeps its files, as a URI; None where an MLflow server decides.

    That is beside a database in a file, else in the workspace, unless MLflow's own variable says where.
    """
    from segmill.mlflow_pages import is_server

    if is_server(uri):
        return None
    if named := os.environ.get(ARTIFACTS_VARIABLE):
        return named
    path = uri.removeprefix("sqlite:///")
    return ((Path(path).parent if path != uri else workspace.root) / "mlartifacts").as_uri()


def ray_address(params: Params) -> str:
    """Return the cluster's address, or "local" for one that is started here."""
    return os.environ.get("RAY_ADDRESS") or params.ray.address


def prefect_api(params: Params) -> str | None:
    """Return the address of the Prefect server that is named; None: each command starts its own."""
    return os.environ.get("PREFECT_API_URL") or params.prefect.api_url
