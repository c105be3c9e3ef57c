"""The service on Ray Serve: doors that answer HTTP, a set of replicas for each version, and a keeper between them.

Each version is an application of its own. The keeper starts the next one, which has to prove itself before it is
named to the doors; these change over between two requests, and the former one is deleted when it has answered what it
was asked. A version that fails in any of that never answered anybody.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from segmill.errors import InputError
from segmill.passwords import without_password
from segmill.promotion.keys import TrustedKeys, parse_trusted
from segmill.promotion.ledger_url import URL_VARIABLE
from segmill.serving.doors import Doors
from segmill.serving.job import ServiceJob, job_of
from segmill.serving.keeper import ANSWERS_WITHIN_S, DRIFTED, REFUSED, Keeper, end
from segmill.serving_params import ServingParams

__all__ = ["DRIFTED", "REFUSED", "ServiceArgs", "application", "build", "events", "start", "stop"]


class ServiceArgs(BaseModel):
    """What a config file of Ray Serve says to start the service with (``args`` of deploy/serve.yaml)."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="The registered model's name.")
    trusted_keys: str = Field(description="Whose signatures are believed: the lines of a workspace's trusted_keys.")
    mlflow_uri: str = Field("", description="Of MLflow; empty takes MLFLOW_TRACKING_URI of each node.")
    ledger_url: str = Field("", description="Of the ledger; empty takes SEGMILL_LEDGER_URL of each node.")
    hint_secrets: tuple[str, ...] = Field((), description="Variables of each node with the secrets of webhooks.")
    serving: ServingParams = Field(ServingParams(), description="As in params.yaml, without host and port.")

    @field_validator("serving")
    @classmethod
    def listens_elsewhere(cls, serving: ServingParams) -> ServingParams:
        if said := serving.model_fields_set & {"host", "port"}:
            raise ValueError(f"{' and '.join(sorted(said))} belong in http_options of the config file")
        return serving

    def job(self) -> ServiceJob:
        """Return the job; InputError where a key is none, or an address holds a password."""
        for address in (self.mlflow_uri, self.ledger_url):
            if without_password(address) != address:
                raise InputError(
                    f"{without_password(address)} holds a password, which Ray would keep",
                    f"put the address into MLFLOW_TRACKING_URI or {URL_VARIABLE} of the nodes",
                )
        trusted = TrustedKeys(tuple(parse_trusted(self.trusted_keys, "trusted_keys")), "trusted_keys")
        return job_of(
            self.serving, model=self.model, trusted=trusted, uri=self.mlflow_uri, ledger_url=self.ledger_url,
            hint_secrets=self.hint_secrets,
        )  # fmt: skip


def build(args: dict[str, Any]) -> Application:
    """Return the service for a config file of Ray Serve. The keeper starts an application for each version besides.

    ``args``: those of ``ServiceArgs``. Ray Serve itself checks types only where annotations are evaluated at import.
    """
    return application(ServiceArgs.model_validate(args).job())


def start(job: ServiceJob, **http: Any) -> DeploymentHandle:
    """Start the service on the Ray that this process is connected to; return the keeper.

    ``http``: of Ray Serve's ``HTTPOptions``.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"keep_alive_timeout_s": 30, **http})
    serve.run(application(job), name=job.app("service"), route_prefix="/")
    return serve.get_deployment_handle("keeper", job.app("service"))


def application(job: ServiceJob) -> Application:
    """Return the application: the keeper, and the doors, which are asked over HTTP.

    One more door starts before one ends, so that no request finds none.
    """
    options: dict[str, Any] = {"num_cpus": 0}
    keeper = serve.deployment(
        Keeper, name="keeper", ray_actor_options=options, max_ongoing_requests=1000, health_check_period_s=5
    ).bind(job)
    return serve.deployment(
        serve.ingress()(Doors), name="door", num_replicas=job.doors, ray_actor_options=options, max_surge_percent=100,
        max_ongoing_requests=2 * job.limits.at_once, health_check_period_s=5,
        graceful_shutdown_timeout_s=job.limits.seconds,
    ).bind(job, keeper)  # fmt: skip


def events(keeper: DeploymentHandle, after: int) -> list[dict[str, Any]]:
    """Return what the keeper says that happened after event number ``after``; nothing while it is started again."""
    with suppress(RayError, RayServeException, TimeoutError):
        found: list[dict[str, Any]] = keeper.events.remote(after).result(timeout_s=ANSWERS_WITHIN_S)
        return found
    return []


def stop(job: ServiceJob) -> None:
    """End the service on the Ray that this process is connected to: first what lets requests in."""
    ours = [name for name in serve.status().applications if name.startswith(job.app("version-"))]
    for name in (job.app("service"), *ours):
        end(name)
