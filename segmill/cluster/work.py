"""A typed job on the cluster: a function and its job go there, its result or its error comes back. Light to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from segmill.cluster.memory import ran_out_of_memory
from segmill.cluster.resources import Resources, check_resources
from segmill.cluster.waiting import fetch, raise_if_stopped
from segmill.errors import InfrastructureError, InputError, SegmillError

if TYPE_CHECKING:
    from ray import ObjectRef

Job = TypeVar("Job")
Part = TypeVar("Part")
Result = TypeVar("Result")

ONE_CPU = Resources()


@dataclass(frozen=True)
class Running(Generic[Result]):
    """Work that was started on the cluster; ``wait`` returns its ``Result``."""

    reference: ObjectRef


def on_ray(
    function: Callable[[Job], Result], job: Job, resources: Resources = ONE_CPU, *, retries: int = 0
) -> Running[Result]:
    """Start ``function(job)`` in a process of the cluster and return at once.

    Ray sends the function by its module and name, so define it at the top level of a module that is light to import
    and let it import torch and the like in its body: this process imports that module too.

    Args:
        job: a frozen dataclass of plain values; Ray pickles it.
        resources: what it holds while it runs; it waits until that is free.
        retries: how often another process does the job anew where one died; an error that it raised is final.

    Raises:
        InfrastructureError: the cluster could never hold it.
    """
    return _start(_do, function, job, resources=resources, retries=retries)


def on_ray_after(
    function: Callable[[Job, list[Part]], Result],
    job: Job,
    parts: Sequence[Running[Part]],
    resources: Resources = ONE_CPU,
    *,
    retries: int = 0,
) -> Running[Result]:
    """Start ``function(job, results)`` once all ``parts`` are done; see ``on_ray``.

    It holds nothing while it waits, results go from process to process past this one, and where a part failed, so does
    this. A result that is lost with its node is made again if its part has retries.
    """
    references = [part.reference for part in parts]
    return _start(_do_after, function, job, *references, resources=resources, retries=retries)


def _start(
    do: Callable[..., Result], function: Callable[..., Result], *arguments: Any, resources: Resources, retries: int
) -> Running[Result]:
    import ray

    raise_if_stopped()
    check_resources(function.__name__, resources)
    remote = ray.remote(
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
        memory=resources.memory_bytes or None,
        max_retries=retries,
    )(do)
    return Running(remote.options(name=function.__name__).remote(function, *arguments))


def _do(function: Callable[[Job], Result], job: Job) -> Result:
    take_threads()
    return function(job)


def _do_after(function: Callable[[Job, list[Part]], Result], job: Job, *parts: Part) -> Result:
    take_threads()
    return function(job, list(parts))


def take_threads() -> None:
    """Let PyTorch use as many threads as CPUs were taken, in a process that may have worked before.

    Ray says how many in OMP_NUM_THREADS before each work; PyTorch reads it once, when it is imported.
    """
    torch, threads = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and threads.isdigit():
        torch.set_num_threads(int(threads))


def wait(running: Running[Result]) -> Result:
    """Return what the work returned, or raise what it raised.

    Errors of ours come out as they went in. Raises InputError where the work ran out of memory and
    InfrastructureError where its process died or the cluster went away.
    """
    from ray import exceptions

    try:
        result: Result = fetch(running.reference)
        return result
    except exceptions.RayError as error:
        raise_own(error)


def raise_own(error: BaseException) -> NoReturn:
    """Raise what an error of Ray's is about, as ``wait`` does."""
    from ray import exceptions

    fault = error
    while isinstance(fault, exceptions.RayTaskError):  # what it waited for may have failed, or been lost
        fault = fault.cause
    if isinstance(fault, exceptions.OutOfMemoryError):
        raise InputError("Ray stopped the work because the machine ran out of memory; lower prepare.size_px") from error
    if isinstance(fault, exceptions.RayError):
        raise InfrastructureError(
            f"Ray lost the work ({first_line(fault)}); run again: what is done is kept"
        ) from error
    if isinstance(fault, SegmillError | OSError):
        raise fault from None
    if isinstance(fault, MemoryError | RuntimeError) and ran_out_of_memory(fault):
        raise InputError(f"the work ran out of memory ({first_line(fault)}); lower prepare.size_px") from error
    raise error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
