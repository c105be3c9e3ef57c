"""The stack's commands: up, down, status, backup, restore; each says what it did in a few lines."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.stack import processes, servers
from deploy.stack.backup import backup, restore_stores
from deploy.stack.place import Place
from deploy.stack.processes import alive, start, wait_ready
from deploy.stack.rights import buckets_granted, grant_buckets, grant_databases, grant_mlflow, grant_service
from segmill.errors import InputError, Interrupted, SegmillError

ENVIRONMENT, REPOSITORY = "pipeline.env", "segmill.git"
# Every server, in the order in which they are stopped, with the signal that ends it in order.
STOP = {
    "service": signal.SIGTERM,
    "worker": signal.SIGTERM,
    "prefect": signal.SIGTERM,
    "mlflow": signal.SIGTERM,
    "ray-node": signal.SIGTERM,
    "ray-head": signal.SIGTERM,
    "s3": signal.SIGTERM,
    "postgres": signal.SIGINT,
}


def up(folder: Path, serve: Path | None = None) -> Place:
    """Start what is not running of the stack in ``folder``, which is made where there is none; return it.

    ``serve``: the workspace whose model is served from now on; None: that of the call before, if any.

    Raises:
        InputError: the S3 API ended, and with it all objects.
        InfrastructureError: a server did not start; of a new stack nothing is left then.
    """
    before = Place.open(folder)
    place = before or Place.create(folder)
    if not buckets_granted(place):  # after a kill in the middle of that; it keeps nothing yet
        processes.stop(place, {"s3": STOP["s3"]})
    elif not alive(place, "s3"):
        raise InputError(
            "the S3 API of this stack ended, and its objects with it",
            "`make stack-down`, then `python -m deploy.stack restore BACKUP`",
        )
    try:
        if serve is not None and str(serve.resolve()) != place.serves:
            processes.stop(place, {"service": STOP["service"]})
            place.serves = str(serve.resolve())
            place.save()
        _start(place)
    except BaseException:
        if before is None:
            _end(place)
        raise
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in servers.pipeline_environment(place).items()]
    place.keep(ENVIRONMENT, "".join(lines)).rename(folder / ENVIRONMENT)
    return place


def _start(place: Place) -> None:
    place.make_folders()
    git = place.folder / "git" / REPOSITORY
    if not git.exists():
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch", "main", str(git)], check=True)
    if not alive(place, "ray-head"):
        processes.stop(place, {"ray-node": STOP["ray-node"]})  # no head starts beside a node of the one before
        servers.delete_ray_sessions(place)
    postgres, s3, head = servers.postgres(place), servers.s3(place), servers.ray_head(place)
    for server in (postgres, s3, head):
        start(place, server)
    wait_ready(place, postgres, s3)
    grant_databases(place)
    if not buckets_granted(place):
        grant_buckets(place)
    mlflow, prefect, node = servers.mlflow(place), servers.prefect(place), servers.ray_node(place)
    start(place, mlflow)
    start(place, prefect)
    wait_ready(place, head)
    start(place, node)
    wait_ready(place, mlflow, prefect, node)
    grant_mlflow(place)
    worker = servers.worker(place)
    start(place, worker)
    wait_ready(place, worker)
    if place.serves:
        grant_service(place)
        service = servers.service(place)
        start(place, service)
        wait_ready(place, service)


def _end(place: Place) -> list[str]:
    """Stop every server by its process id and delete all that the stack wrote; return who had to be killed."""
    killed = processes.stop(place, STOP)
    processes.stop_rest(place)
    place.remove()
    return killed


def restore(folder: Path, kept: Path) -> None:
    """Start a stack where none is, and put a backup's stores into it."""
    place = up(folder)
    # All that has a password of the new stack: those of MLflow's users are the backup's from here on, Ray's nodes' too.
    processes.stop(place, {name: how for name, how in STOP.items() if name not in ("postgres", "s3")})
    restore_stores(place, kept)
    _start(place)


def _servers(place: Place) -> list[str]:
    """Return what is to run, in the order in which it is stopped."""
    return [name for name in STOP if name != "service" or place.serves]


def status(place: Place) -> str:
    """Return what runs where, and how to use it; no secret."""
    addresses = {**servers.urls(place), "postgres": f"{servers.LOOPBACK}:{place.ports['postgres']}"}
    names = {"ray-head": "ray", "worker": "", "ray-node": ""}
    lines = []
    for name in reversed(_servers(place)):
        process = processes.find(place, name)
        state = f"process {process.pid}" if process else "NOT RUNNING"
        lines.append(f"  {name:9} {state:15} {addresses.get(names.get(name, name), '')}".rstrip())
    lines.append(f"  git       {'':15} {addresses['git']}/{REPOSITORY}")
    if not place.serves:
        lines.append("  no model is served: make stack SERVE=WORKSPACE")
    return "\n".join(lines)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one command at a time work on a stack; its lock is beside the folder while one does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        with path.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(held.fileno())):
                continue  # the one before removed it meanwhile
            try:
                yield
            finally:
                path.unlink()
            return


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".stack"), help="the stack's folder; .stack by default")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="start what is not running")
    starting.add_argument("--serve", type=Path, metavar="WORKSPACE", help="serve this workspace's model, now and later")
    commands.add_parser("down", help="stop all servers and delete what they keep")
    commands.add_parser("status", help="what runs where")
    commands.add_parser("backup", help="write a backup into a new folder").add_argument("backup", type=Path)
    commands.add_parser("restore", help="start a stack and put a backup into it").add_argument("backup", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _alone(options.folder.resolve()):
            kept, serve = getattr(options, "backup", None), getattr(options, "serve", None)
            print(run(options.command, options.folder.resolve(), kept, serve))
    except SegmillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(command: str, folder: Path, kept: Path | None = None, serve: Path | None = None) -> str:
    """Run a command on the stack in ``folder`` and return what there is to say.

    ``kept`` is the backup's folder, ``serve`` the workspace that `up` shall serve.
    What it writes, and what its servers write, only its owner can read.
    """
    mask = os.umask(0o077)
    try:
        return _run(command, folder, kept, serve)
    finally:
        os.umask(mask)


def _run(command: str, folder: Path, kept: Path | None, serve: Path | None) -> str:
    place = Place.open(folder)
    if command == "up":
        if serve is not None and not (serve / "params.yaml").is_file():
            raise InputError(f"{serve} is no workspace: it has no params.yaml", "`segmill init` makes one")
        was_up = place is not None and all(alive(place, name) for name in _servers(place))
        said = f"the stack is up{' already' if was_up else ''}:\n{status(up(folder, serve))}"
        return f"{said}\nto work on it:  source {shlex.quote(str(folder / ENVIRONMENT))}"
    if command == "restore":
        assert kept is not None
        restore(folder, kept)
        return f"the stack is up with the backup {kept}"
    if place is None and command == "down":
        return f"no stack in {folder}: nothing to stop"
    if place is None:
        raise InputError(f"no stack in {folder}", "`make stack` starts one")
    if command == "down":
        killed = _end(place)
        return f"the stack is gone{'; killed: ' + ', '.join(killed) if killed else ''}"
    if command == "backup":
        assert kept is not None
        return f"{backup(place, kept) / 2**20:.1f} MiB in {kept}: it holds passwords and the signing key"
    return status(place)


def _interrupt(*_: object) -> None:
    raise Interrupted


if __name__ == "__main__":
    sys.exit(main())
