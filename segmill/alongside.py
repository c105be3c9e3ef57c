"""A function that runs while a block does: in a thread that is told when that is over, or in a process that answers."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

PATIENCE_S = 10.0

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


@contextmanager
def alongside(function: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``function`` in a thread while the block runs; the event it is given is set at the end, then waited for.

    Where the block raised, a thread that does not end (it may wait for a server that is gone) is left behind.
    """
    over = threading.Event()
    thread = threading.Thread(target=function, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        over.set()
        thread.join(PATIENCE_S)
        raise
    over.set()
    thread.join()


@contextmanager
def answered_alongside(
    function: Callable[Asked, Answer], *args: Asked.args, **kwargs: Asked.kwargs
) -> Iterator[Callable[[], Answer]]:
    """Compute ``function(...)`` in a new process while the block runs; the block calls what it is given for the answer.

    For what takes seconds of a core, such as an import, where another core is idle. A process that fails or dies
    is no harm: the call then computes the answer in this process, and raises what is wrong. What is still running
    at the end of the block is stopped. ``function`` is defined at the top level of its module; all that goes in and
    out can be pickled.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, function, args, kwargs), daemon=True)
    process.start()
    theirs.close()

    def answer() -> Answer:
        try:
            found: Answer = ours.recv()
        except EOFError:
            return function(*args, **kwargs)
        return found

    try:
        yield answer
    finally:
        process.terminate()
        process.join()
        ours.close()


def _send(to: Connection, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    with contextlib.suppress(Exception):  # whoever asks computes it again, and sees the error there
        to.send(function(*args, **kwargs))
