"""Events of a model at a Prefect server, which automations wait for: verdicts, new data versions, drift."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from segmill.errors import InfrastructureError
from segmill.passwords import without_passwords

NEW_DATA = "segmill.data_version"  # `segmill data add` posts it
DRIFT = "segmill.drift"  # the notice `drift` of the service; others that watch a model may post it too


@dataclass(frozen=True)
class ModelEvent:
    """The event ``segmill.KIND`` of the resource ``segmill.model.MODEL``.

    Attributes:
        id: a UUID; an event that is sent again under the same one is stored once.
        kind: such as promoted.
        model: the registered model's name.
        time: when it happened, ISO 8601 with its offset.
        version: the registered version that it is about, "" for none.
        payload: JSON-able facts.
    """

    id: str
    kind: str
    model: str
    time: str
    version: str = ""
    payload: dict[str, Any] = field(default_factory=dict)


def model_resource(model: str) -> str:
    """Return the id of a model as Prefect's resources have it."""
    return f"segmill.model.{model}"


def post(api: str, event: ModelEvent, timeout_s: float) -> None:
    """Record an event at the Prefect server at ``api``.

    It is posted, not streamed as by ``emit_event``, which does not learn whether it arrived.

    Raises:
        InfrastructureError: it does not answer.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    version = f"segmill.version.{event.model}.{event.version}"
    body = {
        "id": event.id,
        "occurred": event.time,
        "event": f"segmill.{event.kind}",
        "resource": {"prefect.resource.id": model_resource(event.model), "prefect.resource.name": event.model},
        "related": [{"prefect.resource.id": version, "prefect.resource.role": "version"}] if event.version else [],
        "payload": event.payload,
    }
    try:
        with (
            temporary_settings({PREFECT_API_URL: api}),
            get_client({"timeout": timeout_s}, sync_client=True) as client,
        ):
            client.request("POST", "/events", json=[body])
    except httpx.HTTPError as error:
        raise InfrastructureError(
            f"does not answer ({without_passwords(str(error)) or type(error).__name__})"
        ) from None
