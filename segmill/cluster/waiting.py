"""Waiting for Ray, in a way that ends when the run is stopped or the cluster is gone. Light to import."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from segmill.errors import InfrastructureError, Interrupted

if TYPE_CHECKING:
    from ray import ObjectRef

Result = TypeVar("Result")

LOOK_EVERY_S = 0.5

_STOPPED = threading.Event()
_lost: list[str] = []  # why the cluster is gone
_WAITING: set[int] = set()  # threads


class ClusterLost(InfrastructureError):
    """The cluster that this run is connected to is gone; only another run can connect to a new one."""


def fetch(reference: ObjectRef) -> Any:
    """Return what ``ray.get`` returns, and raise what it raises.

    A thread that is inside ``ray.get`` while another ends the connection may never come out of it. One that waits here
    leaves before that, with Interrupted.
    """
    import ray

    with _leaving_in_time():
        _first([reference])
        return ray.get(reference)


def first_of(references: Sequence[ObjectRef]) -> ObjectRef:
    """Return one of ``references`` that is there, as soon as one is; what it is about is asked of ``ray.get``.

    Raises Interrupted or ClusterLost, as ``raise_if_stopped``.
    """
    with _leaving_in_time():
        return _first(references)


def _first(references: Sequence[ObjectRef]) -> ObjectRef:
    import ray

    while True:
        raise_if_stopped()
        there, _ = ray.wait(list(references), timeout=LOOK_EVERY_S)
        if there:
            return there[0]


@contextmanager
def _leaving_in_time() -> Iterator[None]:
    thread = threading.get_ident()
    _WAITING.add(thread)
    try:
        yield
    except SystemError as error:
        # Of what a signal's handler raises inside Ray's compiled code that knows KeyboardInterrupt and SystemExit only;
        # Prefect's handler raises neither, and Python complains of a result with an exception set.
        if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise
    finally:
        _WAITING.discard(thread)


def raise_if_stopped() -> None:
    """Raise ClusterLost where the cluster is gone, Interrupted where the connection ends: ask nothing of Ray then."""
    if _lost:
        raise ClusterLost(_lost[0])
    if _STOPPED.is_set():
        raise Interrupted


def stop_waiting() -> None:
    """Make every other thread leave ``fetch``, until ``allow_waiting``; return when all have, or after some seconds."""
    _STOPPED.set()
    until = time.monotonic() + 10 * LOOK_EVERY_S
    while _WAITING - {threading.get_ident()} and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S / 10)


def allow_waiting() -> None:
    """Take back ``stop_waiting`` and ``say_lost``: there is a new connection."""
    _STOPPED.clear()
    _lost.clear()


def say_lost(why: str) -> None:
    """Make every thread that waits for work, or asks for more, fail with ClusterLost, until ``allow_waiting``."""
    _lost.append(why)


def in_thread(function: Callable[[], Result]) -> Result:
    """Return what ``function`` returns, which asks Ray; leave it there where the run is stopped or the cluster is gone.

    Ray waits for a minute for a head that is dead. Raises what ``function`` raises, Interrupted or ClusterLost.
    """
    returned: list[Result] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            returned.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY_S)
        raise_if_stopped()
    if raised:
        raise raised[0]
    return returned[0]
