"""The outbox: notices of what happened to a model, written in the transaction that appends the ledger's row.

The service adds those of versions that it refused, and of images that changed, which no row is about.

A transactional outbox (Richardson, Microservices Patterns, 2018). ``delivery`` sends them.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Column, Connection, Float, ForeignKey, Integer, MetaData, String, Table, Text
from sqlalchemy.dialects import postgresql, sqlite

from segmill.promotion.database import Database, make_tables
from segmill.promotion.rows import LedgerRow

KIND_OF_ACTION = {
    "promote": "promoted",
    "overrule": "promoted",
    "refuse": "refused",
    "rollback": "rolled_back",
    "await": "approval_wanted",
    "alias": "alias_moved",
}

NOT_SERVED, DRIFT = "not_served", "drift"

METADATA = MetaData()

NOTICES = Table(
    "notices",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model", String(256), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("time", String(32), nullable=False),
    Column("payload", Text, nullable=False),
    Column("added_s", Float, nullable=False),
    Column("settled", Boolean, nullable=False),  # assigned to every target that there was then
)

TARGETS = Table(
    "notice_targets",
    METADATA,
    Column("name", String(512), primary_key=True),
    Column("named_s", Float, nullable=False),  # when settings last named it, to a day
)

DELIVERIES = Table(
    "notice_deliveries",
    METADATA,
    Column("notice", ForeignKey(NOTICES.c.id), primary_key=True),
    Column("target", ForeignKey(TARGETS.c.name), primary_key=True),
    Column("attempts", Integer, nullable=False),  # 0 with delivered_s: not for this target
    Column("next_try_s", Float, nullable=False),  # while it is being sent: the end of the lease
    Column("delivered_s", Float),
    Column("last_error", Text),
)


@dataclass(frozen=True)
class Notice:
    """What is sent. ``id`` is the same over retries; ``time`` is the ledger row's, UTC, ISO 8601."""

    id: str
    model: str
    number: int
    kind: str
    time: str
    payload: dict[str, Any]


def kind_of(row: LedgerRow) -> str | None:
    """Return the kind of notice that a row of the ledger makes; None where it makes none."""
    if row.action == "approve":
        return "promoted" if row.champion == row.version and row.previous != row.version else None
    return KIND_OF_ACTION.get(row.action)


def make_outbox(connection: Connection) -> None:
    """Make the tables of notices where they are not there."""
    make_tables(connection, METADATA, DELIVERIES, 7365677)


def add(connection: Connection, row: LedgerRow) -> None:
    """Add the row's notice, if it makes one, in the transaction that appends the row. Makes the tables where needed."""
    if kind := kind_of(row):
        make_outbox(connection)
        payload = {
            "model": row.model,
            "number": row.number,
            "action": row.action,
            "version": row.version,
            "champion": row.champion,
            "previous": row.previous,
            "decision": row.decision,
            "reasons": list(row.reasons),
            "because": row.because,
            "actor": row.actor,
            "hash": row.hash,
        }
        _add(connection, Notice(f"msg_{row.hash[:40]}", row.model, row.number, kind, row.time, payload))


def add_not_served(url: str, *, model: str, number: int, version: str, champion: str | None, why: str) -> None:
    """Add the notice that the service refused a version; nothing where there is one for this row of the ledger.

    Args:
        url: of the ledger's database.
        model: the registered model's name.
        number: of the ledger's row that promotes the version.
        version: that was refused.
        champion: the version that continues to answer; None: none does.
        why: one sentence.

    Raises:
        InfrastructureError: the database does not answer.
    """
    payload = {"model": model, "number": number, "version": version, "champion": champion, "reasons": [why]}
    _add_of_service(url, NOT_SERVED, number, payload, [model, number, version])


def add_drift(url: str, *, model: str, version: str, since: str, images: int, evidence: float) -> None:
    """Add the notice that a version no longer sees what it learned; nothing where there is one for this change.

    Args:
        url: of the ledger's database.
        model: the registered model's name.
        version: that answers.
        since: when the images changed, ISO 8601.
        images: that were counted until the alarm.
        evidence: against the images being like the calibration images.

    Raises:
        InfrastructureError: the database does not answer.
    """
    why = f"the images of version {version} are not like those it learned, since {since}"
    payload = {"model": model, "version": version, "since": since, "images": images, "evidence": evidence,
               "reasons": [why]}  # fmt: skip
    _add_of_service(url, DRIFT, 0, payload, [model, version, since])


def _add_of_service(url: str, kind: str, number: int, payload: dict[str, Any], about: list[Any]) -> None:
    id = hashlib.sha256(json.dumps([kind, *about]).encode()).hexdigest()
    when = datetime.now(UTC).isoformat(timespec="seconds")
    with Database(url).writing() as connection:
        make_outbox(connection)
        _add(connection, Notice(f"msg_{id[:40]}", payload["model"], number, kind, when, payload))


def _add(connection: Connection, notice: Notice) -> None:
    row = {
        **asdict(notice),
        "payload": json.dumps(notice.payload, allow_nan=False),
        "added_s": time.time(),
        "settled": False,
    }
    connection.execute(insert_new(connection, NOTICES).values(row).on_conflict_do_nothing())


def insert_new(connection: Connection, table: Table) -> Any:
    """Return an INSERT that can leave out what another process has inserted already."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
