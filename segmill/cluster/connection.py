"""The connection to Ray: a cluster of this machine's cores, or one that runs already. Light to import."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from segmill.alongside import alongside
from segmill.cluster.alive import watching
from segmill.cluster.sessions import mark
from segmill.cluster.waiting import allow_waiting, stop_waiting
from segmill.cluster.work import first_line
from segmill.credentials import needed_by_work, without_credentials
from segmill.errors import InfrastructureError
from segmill.orphans import end_with_this_process

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # a variable of Ray's; 0: no other machine joins
LOOPBACK = ("127.", "localhost:", "[::1]:")  # how an address on this machine alone begins

# How glibc gives memory to the processes of a cluster that is started here (mallopt(3)): one heap that keeps what is
# freed. Left alone it gives large tensors back to the kernel in every step and takes them again, page by page.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",  # Ray trains in a thread, whose own heap could not hold a tensor
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}

REACHED_WITHIN_S = 10.0
_CONNECTING = threading.Lock()


@contextlib.contextmanager
def connect(address: str, num_cpus: int | None = None, *, keep: Iterable[str] = ()) -> Iterator[None]:
    """Be connected to Ray inside the ``with``.

    ``local`` starts a cluster of this machine's cores (or of ``num_cpus``) that ends with the block and never
    joins one that is there already; any other address joins that cluster. Inside another ``connect``, of any
    thread, it does nothing. What is no Exception (Ctrl-C, a termination signal) ends the connection for all threads,
    so that whoever waits for work fails at once. ``keep``: variables with credentials that the processes of a cluster
    that is started here get nevertheless. Raises InfrastructureError where nothing answers.
    """
    with _CONNECTING:
        mine = _init(address, num_cpus, keep)
    over = False
    try:
        with watching(address) if mine else contextlib.nullcontext():
            yield
    except BaseException as reason:
        over = not isinstance(reason, Exception)
        raise
    finally:
        if over:
            stop_waiting()
        if mine or over:
            import ray

            ray.shutdown()


@contextlib.contextmanager
def connecting(address: str) -> Iterator[None]:
    """Begin to ``connect`` while the block already runs; a ``connect`` inside it waits for that, and says what failed.

    The thread that starts Ray stays until the end: Ray's processes end with it. Ray is imported before that thread
    starts: where two threads import at once, one may get a module that the other has only partly imported.
    """
    _import_ray(address)

    def hold(over: threading.Event) -> None:
        with contextlib.suppress(InfrastructureError), connect(address):
            over.wait()

    with alongside(hold):
        yield


def _refuse_unreachable(address: str) -> None:
    """Raise InfrastructureError where nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHED_WITHIN_S).close()
    except OSError as reason:
        raise _no_cluster(address, reason) from None


def _no_cluster(address: str, reason: Exception) -> InfrastructureError:
    return InfrastructureError(
        f"no Ray cluster at {address} ({first_line(reason)}); start one with `ray start --head`, set ray.address "
        "to local, or, where the cluster asks for a token, RAY_AUTH_MODE=token"
    )


def _import_ray(address: str) -> Any:
    if address == "local" or address.startswith(LOOPBACK):
        # Ray reads it when it is imported: its servers listen on loopback then, and an address there is not taken for
        # this machine's address in its network, where they would not answer.
        os.environ.setdefault(LOOPBACK_ONLY, "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A thread that asks Ray when the connection has ended would start a new cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A member of several ranks takes five small processes more; with few cores Ray warns of them on the terminal.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    import ray

    return ray


def _init(address: str, num_cpus: int | None, keep: Iterable[str]) -> bool:
    """Connect this process to Ray; False where it is connected already."""
    ray = _import_ray(address)
    if ray.is_initialized():
        return False
    _refuse_unreachable(address)
    allow_waiting()
    local: dict[str, Any] = {}
    if address == "local":
        local = {"num_cpus": num_cpus, "include_dashboard": False}
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)
        end_with_this_process()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _without_credentials(keep) if address == "local" else contextlib.nullcontext():
            context = ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as reason:  # Ray raises a bare Exception where its own processes take too long
        ray.shutdown()
        if address == "local":
            raise InfrastructureError(
                f"Ray did not start on this machine ({first_line(reason)}); where it is overloaded, try again later"
            ) from reason
        raise _no_cluster(address, reason) from reason
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own exits with 15
    if address == "local":
        mark(context.address_info["session_dir"])
    return True


@contextlib.contextmanager
def _without_credentials(keep: Iterable[str]) -> Iterator[None]:
    """Keep credentials that work does not need out of the environment of the processes that Ray starts meanwhile.

    They stay in this process's environment: other threads, which fetch and record, use them at the same time.
    """
    from ray._private import services

    popen = services.ConsolePopen

    def start(*args: Any, env: Mapping[str, str], **options: Any) -> Any:
        return popen(*args, env=without_credentials(env, keep=[*needed_by_work(env), *keep]), **options)

    services.ConsolePopen = start
    try:
        yield
    finally:
        services.ConsolePopen = popen
