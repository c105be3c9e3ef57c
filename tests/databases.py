"""A real PostgreSQL server on loopback, for as long as a block runs; it can be killed and started again.

The fixture ``url`` is a database of each kind: a test module's conftest imports it, and ``server`` with it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text


@dataclass(frozen=True)
class PostgreSQL:
    """A server whose data are in ``folder``; ``drop``: what runs its programs, which root may not.

    Attributes:
        url: the SQLAlchemy URL of its database.
    """

    folder: Path
    port: int
    drop: list[str]

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://segmill@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -h 127.0.0.1 -c fsync=off"
        self.run("pg_ctl", "-D", "data", "-o", options, "-w", "-l", "log", "start")

    def stop(self) -> None:
        """Stop it, if it runs."""
        if (self.folder / "data" / "postmaster.pid").exists() and psutil.pid_exists(self._pid()):
            self.run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """Kill every process of it at once, as a machine that dies does."""
        server = psutil.Process(self._pid())
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=20)

    def run(self, *command: str) -> None:
        with self.folder.with_suffix(".log").open("ab") as log:
            subprocess.run([*self.drop, *command], cwd=self.folder, check=True, stdout=log, stderr=log)

    def _pid(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])


@contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """Give a server with a fresh database. Root can't run it, so that nobody does then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="segmill-postgresql-"))
    drop: list[str] = []
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        drop = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    server = PostgreSQL(folder, port, drop)
    try:
        server.run(
            "initdb", "-D", "data", "-U", "segmill", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


@contextmanager
def postgresql() -> Iterator[str]:
    """Give the SQLAlchemy URL of a fresh database."""
    with postgresql_server() as server:
        yield server.url


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL that tests share."""
    if shutil.which("initdb") is None:
        pytest.skip("there is no PostgreSQL here")
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server, name = request.getfixturevalue("server"), f"test_{uuid.uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return str(server).removesuffix("postgres") + name
