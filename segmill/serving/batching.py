"""Several requests computed together: whatever waits when the computing thread is free, and nothing waits for more.

``ray.serve.batch`` cuts a batch when its first request comes, also while another one is computed: under load each
batch is a single request that waits for its turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from segmill.serving.priority import at_low_priority

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Compute = Callable[[Sequence[Asked]], Sequence[Answer]]


class Batcher(Generic[Asked, Answer]):
    """A thread that computes.

    Not more than one: each thread that computes has OpenMP threads of its own, and where these are more than the cores,
    every step of a network waits until one is woken up.
    """

    def __init__(self, load: Callable[[], Compute[Asked, Answer]], most: int) -> None:
        """``load`` at low priority what the thread computes with, and start it; raises what that raises.

        Args:
            load: returns what answers several requests, in their order.
            most: requests that are computed together.
        """
        self._waiting: SimpleQueue[tuple[Asked, Future[Answer]]] = SimpleQueue()
        self._most = most
        threading.Thread(target=self._run, args=(at_low_priority(load),), name="computing", daemon=True).start()

    async def ask(self, asked: Asked) -> Answer:
        """Return the answer; what is cancelled before its turn is not computed."""
        future: Future[Answer] = Future()
        self._waiting.put((asked, future))
        return await asyncio.wrap_future(future)

    def _run(self, compute: Compute[Asked, Answer]) -> None:
        while True:
            batch = [(asked, future) for asked, future in self._taken() if future.set_running_or_notify_cancel()]
            if not _answered(compute, batch) and len(batch) > 1:  # one of them may be why
                for one in batch:
                    _answered(compute, [one])

    def _taken(self) -> list[tuple[Asked, Future[Answer]]]:
        taken = [self._waiting.get()]
        while len(taken) < self._most:
            try:
                taken.append(self._waiting.get_nowait())
            except Empty:
                break
        return taken


def _answered(compute: Compute[Asked, Answer], batch: Sequence[tuple[Asked, Future[Answer]]]) -> bool:
    """Compute a batch and answer it; False where that failed, which is said to a request that was alone."""
    if not batch:
        return True
    try:
        answers = compute([asked for asked, _ in batch])
    except Exception as error:
        if len(batch) == 1:
            batch[0][1].set_exception(error)
        return False
    for (_, future), answer in zip(batch, answers, strict=True):
        future.set_result(answer)
    return True
