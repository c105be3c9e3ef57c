"""Sends the notices that wait in the ledger's database: to webhooks, and to Prefect where a server is configured."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

from flows.environment import prefect_api
from segmill.errors import InfrastructureError
from segmill.notify_params import EVENTS
from segmill.passwords import public_address
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.promotion.delivery import Delivered, Target
    from segmill.promotion.outbox import Notice

IN_STATUS_S = 2.0  # what `segmill status` waits at most, and only where a notice is due


def deliver_pending(workspace: Workspace, params: Params) -> Delivered:
    """Send what waits; call it at the end of a command that moves the champion or judges. It raises nothing.

    ``notify`` of the settings names the targets; the environment was prepared for them. What could not be sent is one
    line on standard error, stays in the ledger's database, and is sent by a later command.
    """
    from segmill.promotion.delivery import PATIENCE_S

    delivered = _deliver(workspace, params, PATIENCE_S)
    if delivered.failed or (delivered.last_error and not delivered.waiting):
        later = f"; {delivered.waiting} to be sent by a later command" if delivered.waiting else ""
        print(f"notices: {delivered.last_error}{later}", file=sys.stderr)
    return delivered


def notices_state(workspace: Workspace, params: Params) -> dict[str, Any]:
    """Send what is due in at most 2 s, imports not counted; return the part ``notices`` of `segmill status --json`.

    Returns:
        ``waiting``: the number of notices that a target has not got yet; ``last_error``: one line, or None.
    """
    if _nothing_waits(workspace, params):
        return {"waiting": 0, "last_error": None}
    delivered = _deliver(workspace, params, IN_STATUS_S)
    return {"waiting": delivered.waiting, "last_error": delivered.last_error}


def _deliver(workspace: Workspace, params: Params, patience_s: float) -> Delivered:
    from segmill.promotion.delivery import deliver
    from segmill.promotion.ledger_url import ledger_url

    return deliver(ledger_url(workspace.root, params.promotion.ledger_url), targets(params), patience_s=patience_s)


def targets(params: Params) -> list[Target]:
    """Return where the settings send notices to."""
    from segmill.promotion.delivery import Target
    from segmill.promotion.webhooks import webhook

    found = [
        webhook(one.url, one.secret_env, frozenset(EVENTS if one.events is None else one.events))
        for one in params.notify.webhooks
    ]
    api = prefect_api(params)
    if params.notify.prefect or (api and params.notify.prefect is None):
        name = f"prefect {public_address(api)}" if api else "prefect"
        needs = ("httpx", "flows.prefect_events", "prefect.client.orchestration", "prefect.settings")
        found.append(
            Target(name, frozenset(EVENTS), lambda notice, timeout_s: _emit(api, notice, timeout_s), imports=needs)
        )
    return found


def _nothing_waits(workspace: Workspace, params: Params) -> bool:
    """Look into the workspace's own SQLite file without SQLAlchemy, which takes 0.2 s to import.

    False where that does not say it: the ledger is elsewhere, is locked, or is damaged.
    """
    if params.promotion.ledger_url or "SEGMILL_LEDGER_URL" in os.environ:
        return False
    if not workspace.ledger.is_file():
        return True
    query = (
        "SELECT EXISTS (SELECT 1 FROM notices WHERE NOT settled) "
        "OR EXISTS (SELECT 1 FROM notice_deliveries WHERE delivered_s IS NULL)"
    )
    try:
        with closing(sqlite3.connect(f"{workspace.ledger.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return not connection.execute(query).fetchone()[0]
    except sqlite3.Error as error:
        return "no such table" in str(error)


def _emit(api: str | None, notice: Notice, timeout_s: float) -> None:
    """Record the event ``segmill.KIND`` of the model at a Prefect server, once however often it is sent.

    Raises:
        InfrastructureError: no server is named, or it does not answer.
    """
    from uuid import NAMESPACE_URL, uuid5

    from flows.prefect_events import ModelEvent, post

    if not api:
        raise InfrastructureError("no server is named; set prefect.api_url or PREFECT_API_URL")
    event = ModelEvent(
        id=str(uuid5(NAMESPACE_URL, notice.id)), kind=notice.kind, model=notice.model, time=notice.time,
        version=notice.payload["version"], payload=notice.payload,
    )  # fmt: skip
    post(api, event, timeout_s)
