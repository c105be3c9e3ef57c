"""The service on Ray Serve: doors that answer HTTP, a set of replicas for each version, and a keeper between them.

Each version is an application of its own. The keeper starts the next one, which has to prove itself before it is
named to the doors; these change over between two requests, and the former one is deleted when it has answered what it
was asked. A version that fails in any of that never answered anybody.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from segmill.serving.doors import Doors
from segmill.serving.job import ServiceJob
from segmill.serving.keeper import ANSWERS_WITHIN_S, Keeper, end


def start(job: ServiceJob, **http: Any) -> DeploymentHandle:
    """Start the service on the Ray that this process is connected to; return the keeper.

    ``http``: of Ray Serve's ``HTTPOptions``.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"keep_alive_timeout_s": 30, **http})
    found = serve.run(keeper(job), name=job.app("keeper"), route_prefix=None)
    serve.run(door(job), name=job.app("door"), route_prefix="/")
    return found


def keeper(job: ServiceJob) -> Application:
    """Return the application of the keeper."""
    options: dict[str, Any] = {"num_cpus": 0}
    return serve.deployment(
        Keeper, name="keeper", ray_actor_options=options, max_ongoing_requests=1000, health_check_period_s=5
    ).bind(job)


def door(job: ServiceJob) -> Application:
    """Return the application of the doors. One more starts before one ends, so that no request finds none."""
    options: dict[str, Any] = {"num_cpus": 0}
    return serve.deployment(
        serve.ingress()(Doors), name="door", num_replicas=job.doors, ray_actor_options=options, max_surge_percent=100,
        max_ongoing_requests=2 * job.limits.at_once, health_check_period_s=5,
        graceful_shutdown_timeout_s=job.limits.seconds,
    ).bind(job)  # fmt: skip


def events(keeper: DeploymentHandle, after: int) -> list[dict[str, Any]]:
    """Return what the keeper says that happened after event number ``after``; nothing while it is started again."""
    with suppress(RayError, RayServeException, TimeoutError):
        found: list[dict[str, Any]] = keeper.events.remote(after).result(timeout_s=ANSWERS_WITHIN_S)
        return found
    return []


def stop(job: ServiceJob) -> None:
    """End the service on the Ray that this process is connected to: first what lets requests in."""
    ours = [name for name in serve.status().applications if name.startswith(job.app("version-"))]
    for name in (job.app("door"), job.app("keeper"), *ours):
        end(name)
