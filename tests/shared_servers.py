"""Servers that all test processes share. Each starts when a test first asks for it and ends with the last process.

    python tests/shared_servers.py prefect|ray|s3 FOLDER

runs one: it writes its address into the folder and ends when no process holds the folder's pipe any more.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segmill.orphans import STARTED_BY

FOLDER = "SEGMILL_TESTS_SERVERS"  # a variable that pytest-xdist's processes inherit
PIPE = "users"


@contextmanager
def folder_of_servers() -> Iterator[None]:
    """Make the folder where servers are found; those that run when the block ends are waited for."""
    with tempfile.TemporaryDirectory(prefix="segmill-servers-") as name:
        folder = Path(name)
        os.mkfifo(folder / PIPE)
        os.environ[FOLDER] = name
        with (folder / PIPE).open("r+b", buffering=0):  # for writing too: servers run while there is a writer
            yield
        until = time.monotonic() + 60
        while any(folder.glob("*.address")) and time.monotonic() < until:
            time.sleep(0.05)


def shared_server(kind: str) -> str:
    """Return the address of the one server of this kind, which is started where none runs."""
    folder = Path(os.environ[FOLDER])
    address, log = folder / f"{kind}.address", folder / f"{kind}.log"
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            with log.open("w") as out:
                # It outlives the process that started it first.
                own = {name: value for name, value in os.environ.items() if name != STARTED_BY}
                server = subprocess.Popen([sys.executable, __file__, kind, folder], stdout=out, stderr=out, env=own)
            while not address.exists():
                assert server.poll() is None, f"{kind} did not start: {log.read_text()}"
                time.sleep(0.05)
    return address.read_text()


@contextmanager
def serving(program: str, *options: str, **variables: str) -> Iterator[str]:
    """Run a server of the environment on a free port of loopback while the block runs; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name(program)), *options, str(port)]
    server = subprocess.Popen(command, env={**os.environ, **variables})
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, f"{program} did not start"
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


@contextmanager
def mlflow_server(database: str, files: Path) -> Iterator[str]:
    """Run an MLflow server with this database and folder of files, without the four processes of its jobs."""
    options = ("--workers", "1", "--backend-store-uri", database, "--artifacts-destination", str(files))
    with serving("mlflow", "server", *options, "--port", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as url:
        yield url


@contextmanager
def prefect(folder: Path) -> Iterator[str]:
    os.environ["PREFECT_HOME"] = str(folder / "prefect")
    with serving("prefect", "server", "start", "--host", "127.0.0.1", "--port") as url:
        yield f"{url}/api"


@contextmanager
def ray(folder: Path) -> Iterator[str]:
    from segmill.cluster.connection import connect

    with connect("local", 2):
        from ray import get_runtime_context

        yield get_runtime_context().gcs_address


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    with serving("moto_server", "-H", "127.0.0.1", "-p") as url:
        yield url


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    file = folder / f"{kind}.address"
    with {"prefect": prefect, "ray": ray, "s3": s3}[kind](folder) as address:
        draft = folder / f"{kind}.draft"
        draft.write_text(address)
        draft.rename(file)
        (folder / PIPE).read_bytes()  # until nobody holds it for writing
    file.unlink()


if __name__ == "__main__":
    main()
