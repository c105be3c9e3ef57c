"""A function that runs in a thread of its own while a block does, and is told when that is over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def alongside(function: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``function`` in a thread while the block runs; the event it is given is set at the end, then waited for."""
    over = threading.Event()
    thread = threading.Thread(target=function, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
