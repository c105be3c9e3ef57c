"""Servers as processes: started in sessions of their own, found and stopped by their process ids."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deploy.stack.place import Place
from flows.environment import TELEMETRY_OFF
from segmill.errors import InfrastructureError, InputError
from segmill.orphans import is_watcher

# In the environment of all that a stack started, servers and what they start: which stack, and which server.
MARK, MARK_SERVER = "SEGMILL_STACK", "SEGMILL_STACK_SERVER"
INHERITED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
READY_WITHIN_S = 300
ENDS_WITHIN_S = 20.0  # after its signal
ALONE_S = 3.0  # children of a server that ended
CLEARS_WITHIN_S = 15.0  # who deletes what a run leaves, after the run


@dataclass(frozen=True)
class Server:
    """A program that serves.

    Args:
        environment: what it needs besides ``surroundings``, secrets in files where it can read them there.
        port: on which it will listen on 127.0.0.1; None: on none that was chosen.
        ready: tells whether it serves; errors of the connection mean that it does not yet.
        owner: keywords of ``subprocess.Popen`` with the user it runs as.
        tries: how often it is started where it ends before it is ready.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    port: int | None
    ready: Callable[[], bool]
    owner: Mapping[str, Any] = field(default_factory=dict)
    tries: int = 1


def surroundings(place: Place) -> dict[str, str]:
    """Return the environment of every process of a stack: nothing of the caller's but where programs are.

    The home is the stack's own, so that no server reads or writes a token, a password or a setting of the user.
    """
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
    own = {"HOME": str(place.folder / "home"), "TMPDIR": str(place.run / "tmp"), MARK: place.id}
    return {**kept, **TELEMETRY_OFF, "PATH": path, **own}


def program(name: str) -> str:
    """Return the path of a program of this Python environment."""
    return str(Path(sys.executable).with_name(name))


def program_on_path(name: str) -> str:
    """Return the path of a program of PostgreSQL's. Raises InputError where it is not on PATH."""
    found = shutil.which(name)
    if found is None:
        raise InputError(f"PostgreSQL's {name} is not on PATH", "install PostgreSQL 14 or newer and add its bin folder")
    return found


def start(place: Place, server: Server) -> None:
    """Start a server whose process is not there; the log of one that ended is kept as NAME.log.1.

    Raises InputError where another program has its port.
    """
    if alive(place, server.name):
        return
    _kill(marked(place, server.name))  # what one that was killed left, or one that no record names
    if server.port is not None and _taken(server.port):
        raise InputError(
            f"port {server.port}, which is {server.name}'s on this stack, is used by another program",
            "end that, or make another stack: `make stack-down`, `make stack`, which deletes what this one keeps",
        )
    environment = {**surroundings(place), MARK_SERVER: server.name, **server.environment}
    path = place.log(server.name)
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    with path.open("wb") as log:
        process = subprocess.Popen(
            server.command, env=environment, cwd=place.run, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, **server.owner,
        )  # fmt: skip
    place.processes[server.name] = process.pid, psutil.Process(process.pid).create_time()
    place.save()


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended just now don't count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def wait_ready(place: Place, *servers: Server) -> None:
    """Return when all serve.

    Raises InfrastructureError where one ended, or does not answer within some minutes.
    """
    until, tries = time.monotonic() + READY_WITHIN_S, {server.name: server.tries for server in servers}
    for server in servers:
        while not (alive(place, server.name) and _answers(server)):
            if not alive(place, server.name) and tries[server.name] > 1:
                tries[server.name] -= 1
                start(place, server)
            if not alive(place, server.name) or time.monotonic() > until:
                said = place.log(server.name).read_text(errors="replace").strip().splitlines()[-12:]
                raise InfrastructureError(
                    f"{server.name} did not start; {place.log(server.name)} ends with:\n" + "\n".join(said)
                )
            time.sleep(0.1)


def _answers(server: Server) -> bool:
    try:
        return server.ready()
    except Exception:  # each client has its own for a server that does not listen yet
        return False


def find(place: Place, name: str) -> psutil.Process | None:
    """Return a server's process; None where it is gone, also where its id belongs to another process now."""
    pid, created = place.processes.get(name, (0, 0.0))
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid) if pid else None
        if process and abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def alive(place: Place, name: str) -> bool:
    """Tell whether a server's process is there."""
    return find(place, name) is not None


def stop(place: Place, servers: Mapping[str, signal.Signals]) -> list[str]:
    """End servers in this order, each with its signal, and what they started; return who had to be killed.

    What a server left that ended by itself ends too.
    """
    killed, seen = [], set()
    for name, signal_number in servers.items():
        process = find(place, name)
        seen |= marked(place, name)
        if process is None:
            continue
        seen |= _with_children(process)
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal_number)
        if psutil.wait_procs([process], ENDS_WITHIN_S)[1]:
            killed.append(name)
    _kill(psutil.wait_procs(seen, ALONE_S)[1])
    return killed


def stop_rest(place: Place) -> None:
    """Kill whatever of the stack is left: a server that was killed leaves what it started."""
    while left := marked(place):
        _kill(left)


def _kill(left: Iterable[psutil.Process]) -> None:
    """Kill processes; those that end and delete what a run leaves may do so before."""
    clearing = {process for process in left if is_watcher(process)}
    for group, patience in ((set(left) - clearing, 0.0), (clearing, CLEARS_WITHIN_S)):
        alive = psutil.wait_procs(group, patience)[1]
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, ALONE_S)


def marked(place: Place, server: str | None = None) -> set[psutil.Process]:
    """Return every process whose environment names the stack, or that server of it."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            ours = environment.get(MARK) == place.id and server in (None, environment.get(MARK_SERVER))
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


def _with_children(process: psutil.Process) -> set[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return {process, *process.children(recursive=True)}
    return {process}


def families(place: Place) -> dict[str, set[psutil.Process]]:
    """Return each running server's processes: its own and all that it started.

    Those that overwrite their environment, as Ray's agents do, are found as children.
    """
    found = {}
    for name in place.processes:
        if process := find(place, name):
            found[name] = _with_children(process) | marked(place, name)
    return found
