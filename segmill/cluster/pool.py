"""Workers on the cluster that keep what they loaded and take one part of the work after another. Light to import."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from segmill.cluster.resources import Resources, check_resources
from segmill.cluster.waiting import first_of, raise_if_stopped
from segmill.cluster.work import first_line, raise_own, take_threads
from segmill.errors import InfrastructureError, Interrupted

Job = TypeVar("Job")
Part = TypeVar("Part")
Result = TypeVar("Result")

STARTS = 3  # workers that died one after another before any was ready: it is not by chance


class PoolWorker:
    """A process of the cluster: what ``begin`` made is asked about each part."""

    def begin(self, make: Callable[[Any], Callable[[Any], Any]], job: Any) -> None:
        take_threads()
        self._do = make(job)

    def do(self, part: Any) -> Any:
        return self._do(part)


def each_part(
    make: Callable[[Job], Callable[[Part], Result]], job: Job, parts: deque[Part], resources: Resources, workers: int
) -> Iterator[tuple[Part, Result | None]]:
    """Yield each part and what became of it, as they are done; None for a part whose process died meanwhile.

    Every worker calls ``make(job)`` once, and what that returned with one part after another, until ``parts`` is empty.
    One that dies is replaced. Whoever iterates may add to ``parts`` meanwhile, such as a part that was lost.

    Args:
        make: at the top level of a module that is light to import, as ``work.on_ray`` wants it.
        job: Ray pickles it.
        parts: they are taken from its left.
        resources: what each worker holds.
        workers: how many at most.

    Raises:
        InfrastructureError: the cluster could never hold one, or processes die before they are ready.
        Interrupted, ClusterLost: the run is stopped, or the cluster is gone.
        SegmillError, OSError: what ``make`` or the work on a part raised; what is unfinished then is given up.
    """
    import ray
    from ray import exceptions

    raise_if_stopped()
    check_resources("each worker", resources)
    remote = ray.remote(
        num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, memory=resources.memory_bytes or None, max_restarts=0
    )(PoolWorker)
    running: dict[Any, tuple[Any, Part | None]] = {}  # by the answer that is waited for; no part: it is starting
    died = 0

    def start() -> None:
        worker = remote.remote()
        running[worker.begin.remote(make, job)] = worker, None

    try:
        for _ in range(min(workers, len(parts))):
            start()
        while running:
            answer = first_of(list(running))
            worker, part = running.pop(answer)
            try:
                result = ray.get(answer)
            except exceptions.RayTaskError as error:
                raise_own(error)
            except exceptions.RayError as error:
                _end(worker)
                if part is not None:
                    yield part, None
                elif (died := died + 1) == STARTS:
                    raise InfrastructureError(
                        f"processes of the cluster die before they are ready ({first_line(error)})"
                    ) from error
                if parts:
                    start()
                continue
            died = 0
            if part is not None:
                yield part, result
            if parts:
                part = parts.popleft()
                running[worker.do.remote(part)] = worker, part
            else:
                _end(worker)
    finally:
        with suppress(Interrupted, InfrastructureError):  # where Ray is gone, its processes end by themselves
            raise_if_stopped()
            for worker, _ in running.values():
                _end(worker)


def _end(worker: Any) -> None:
    import ray

    with suppress(Exception):  # it is gone
        ray.kill(worker)
