"""`segmill ui`: the Prefect and MLflow pages of a workspace, on loopback, until interrupted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.commands.options import HERE, WorkspaceOption, answer_now, open_workspace, out, tell
from segmill.errors import InfrastructureError, InputError, SegmillError
from segmill.mlflow_pages import OF_TRAINING, PORT, is_server
from segmill.passwords import without_password
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes that only serve its chat features


def ui_command(
    workspace: WorkspaceOption = HERE,
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow page.")] = PORT,
) -> None:
    """Start the Prefect and MLflow pages on this machine."""
    from flows.environment import tracking_uri

    space, params = open_workspace(workspace)
    serve(space, tracking_uri(space, params), model_of(space, params), prefect_port, mlflow_port, out)


def model_of(workspace: Workspace, params: Params) -> str | None:
    """Return the registered model's name; None where the labelled set, which names it, is not there."""
    from tasks.register import model_name

    try:
        return model_name(workspace, params)
    except SegmillError:
        return None


def serve(
    workspace: Workspace,
    tracking_uri: str,
    model: str | None,
    prefect_port: int,
    mlflow_port: int,
    console: Console,
) -> None:
    """Start what does not run elsewhere already, say where each page is, and stop what was started at the end.

    Args:
        model: the registered model whose pages are named too: of its experiment's runs, and of its versions.

    Raises:
        InputError: a port is taken.
        InfrastructureError: a server did not come up.
    """
    from segmill.orphans import end_with_this_process
    from segmill.tracking import model_pages

    pages: dict[str, str] = {}
    commands: dict[str, list[str]] = {}
    if api := os.environ.get("PREFECT_API_URL"):
        pages["Prefect"] = api.removesuffix("/").removesuffix("/api")
    else:
        commands["Prefect"] = [
            "-m", "prefect", "server", "start", "--host", HOST, "--port", str(_free(prefect_port, "prefect"))
        ]  # fmt: skip
        pages["Prefect"] = f"http://{HOST}:{prefect_port}"
    mlflow = tracking_uri if is_server(tracking_uri) else f"http://{HOST}:{mlflow_port}"
    pages["MLflow"] = f"{without_password(mlflow).rstrip('/')}/#/{OF_TRAINING}"
    if not is_server(tracking_uri):
        commands["MLflow"] = [
            "-m", "mlflow", "server", "--host", HOST, "--port", str(_free(mlflow_port, "mlflow")), "--workers", "1"
        ]  # fmt: skip
    settings = {
        # Prefect's page asks the server at this address, which would be port 4200 whatever --port says.
        "Prefect": {"PREFECT_SERVER_UI_API_URL": f"{pages['Prefect']}/api"},
        # Not as an argument, which every user of the machine sees: it may hold a password.
        "MLflow": {"MLFLOW_BACKEND_STORE_URI": tracking_uri},
    }
    logs = workspace.scratch / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    servers: dict[str, subprocess.Popen[bytes]] = {}
    end_with_this_process()
    try:
        for name, command in commands.items():
            servers[name] = _start(command, logs / f"{name.lower()}.log", workspace, settings[name])
        for name, server in servers.items():
            console.print(f"{name} starts ...", highlight=False, style="dim")
            _await(name, server, pages[name], logs / f"{name.lower()}.log")
        if model:
            pages |= model_pages(mlflow, model)
        for name, page in pages.items():
            console.print(f"[bold]{name:8}[/] {page}", highlight=False, soft_wrap=True)
        tell(pages=pages)
        answer_now()
        if not servers:
            return
        console.print("Ctrl-C stops them")
        while all(server.poll() is None for server in servers.values()):
            time.sleep(0.5)
        ended = [name for name, server in servers.items() if server.poll() is not None]
        raise InfrastructureError(f"{', '.join(ended)} ended by itself; see {logs}")
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        _stop(list(servers.values()))


def _free(port: int, option: str) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise InputError(f"port {port} is taken; name another with --{option}-port") from None
    return port


def _start(command: list[str], log: Path, workspace: Workspace, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=workspace.root,
            env={
                **os.environ,
                **NO_JOBS,
                **settings,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            },
            start_new_session=True,
        )


def _await(name: str, server: subprocess.Popen[bytes], page: str, log: Path) -> None:
    import urllib.error
    import urllib.request

    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(page, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise InfrastructureError(f"{name} did not come up at {page}; its last words are in {log}")


def _stop(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
    for server in servers:
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
