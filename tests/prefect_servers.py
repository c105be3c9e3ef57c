"""A Prefect server and a process worker of their own, which a test may stop and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from postings import free_port
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from terminal import BIN, terminal

QUICK = {  # what is late is marked so after 3 s, and a worker asks for work every second
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "3",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "3",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "2",
}


@dataclass
class PrefectServers:
    """A server on a port of loopback that stays the same, its database in ``folder``, and workers of a pool.

    ``own``: variables of the server and of everything that is run through ``env``.
    """

    folder: Path
    own: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    server: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def env(self) -> dict[str, str]:
        """Variables that let commands and workers use the server."""
        return {**QUICK, **self.own, "PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.folder / "home")}

    def start(self, **more: str) -> None:
        """Start the server and wait until it answers."""
        command = [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("a") as log:
            self.server = subprocess.Popen(command, env={**terminal(self.env), **more}, stdout=log, stderr=log)
        until = time.monotonic() + 120
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.api}/health").close()
                return
            assert self.server.poll() is None and time.monotonic() < until, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server, with all that it started."""
        if self.server and self.server.poll() is None:
            end(self.server)

    def kill(self) -> None:
        """Kill the server, with all that it started."""
        assert self.server
        server = psutil.Process(self.server.pid)
        for process in (server, *server.children(recursive=True)):
            process.kill()
        self.server.wait()

    @contextmanager
    def worker(self, *options: str, **more: str) -> Iterator[psutil.Popen]:
        """Run a worker of the pool ``segmill`` while the block runs; what it started is ended with it."""
        command = [BIN / "prefect", "worker", "start", "--pool", "segmill", *options]
        with (self.folder / "worker.log").open("a") as log:
            process = psutil.Popen(command, env={**terminal(self.env), **more}, stdout=log, stderr=log)
        try:
            yield process
        finally:
            end(process)

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with temporary_settings({PREFECT_API_URL: self.api}), get_client(sync_client=True) as client:
            yield client

    def runs(self, **filters: Any) -> list[FlowRun]:
        """Return the runs of deployments, by when they were due."""
        with self.client() as client:
            found: list[FlowRun] = []
            while page := client.read_flow_runs(limit=200, offset=len(found), **filters):
                found += page
        return sorted((run for run in found if run.deployment_id), key=lambda run: str(run.expected_start_time))

    def wait(self, what: Callable[[list[FlowRun]], Any], timeout_s: float = 120) -> list[FlowRun]:
        """Wait until the runs are as ``what`` says; return them."""
        until = time.monotonic() + timeout_s
        while not what(runs := self.runs()):
            assert time.monotonic() < until, [
                (run.name, run.state and (run.state.name, run.state.message)) for run in runs
            ]
            time.sleep(0.5)
        return runs

    def said(self) -> str:
        """Return what workers and their runs printed."""
        log = self.folder / "worker.log"
        return log.read_text() if log.exists() else ""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, by their ids."""
    with suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
            process.wait(15)
        left = psutil.wait_procs(started, 20)[1]  # who ends a run's processes and folder needs 10 s at most
        for one in [*left, psutil.Process(process.pid)] if process.poll() is None else left:
            with suppress(psutil.Error):
                one.kill()
    process.wait()


@contextmanager
def prefect_servers(folder: Path, own: Mapping[str, str] | None = None) -> Iterator[PrefectServers]:
    """Run a server while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    servers = PrefectServers(folder, dict(own or {}))
    before = os.environ.get("PREFECT_API_URL")
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
        assert os.environ.get("PREFECT_API_URL") == before
