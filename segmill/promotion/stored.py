"""What the ledger's database holds of one model: its rows, or those of an earlier release, and the line about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, func, select, text

from segmill.promotion import chain, database
from segmill.promotion.chain import StoredRow
from segmill.promotion.database import EARLIER, MODELS, ROWS

_AT = ("head", "head_hash", "mirrored", "moves")


@dataclass(frozen=True)
class Known:
    """Rows and line of one model, read under one transaction.

    Attributes:
        model: its name.
        ledger: the ledger's random name; "" where its tables are not there.
        rows: by number.
        earlier: the rows are those of an earlier release, which nobody appended to since.
        line: of ``database.MODELS``; empty where there is none.
    """

    model: str
    ledger: str = ""
    rows: tuple[StoredRow, ...] = ()
    earlier: bool = True
    line: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> tuple[int, str]:
        """Number and hash of the last row; 0 and the hash that the first row has before it, where there is none."""
        if self.rows:
            return self.rows[-1].number, self.rows[-1].hash
        return 0, chain.genesis(self.ledger, self.model)

    @property
    def at(self) -> tuple[object, ...]:
        """What changes with every row and with every move of MLflow's alias that is begun or seen to be done."""
        return tuple(self.line.get(name) for name in _AT)


def known(connection: Connection, model: str) -> Known:
    """Return what there is of the model."""
    ledger = database.ledger_id(connection)
    line = None
    if ledger:
        line = connection.execute(of(MODELS, model, select)).mappings().one_or_none()
        found = connection.execute(of(ROWS, model, select).order_by(ROWS.c.number)).mappings()
        rows = tuple(StoredRow(**row) for row in found)
        if rows or (line and line["head"]):
            return Known(model, ledger, rows, False, dict(line or {}))
    return Known(model, ledger, _earlier(connection, ledger, model), True, dict(line or {}))


def at(connection: Connection, model: str) -> tuple[object, ...]:
    """Return ``Known.at`` without reading the rows."""
    if not database.has_table(connection, MODELS):
        return Known(model).at
    line = connection.execute(of(MODELS, model, select)).mappings().one_or_none()
    return Known(model, line=dict(line or {})).at


def models(connection: Connection) -> list[str]:
    """Return the models that the database has anything of, by name."""
    names: set[str] = set()
    for table in (ROWS, MODELS, EARLIER):
        if database.has_table(connection, table):
            names.update(connection.execute(select(table.c.model).distinct()).scalars())
    return sorted(names)


def lock(connection: Connection, model: str) -> None:
    """Be the only one who writes about the model until the transaction ends; its line is there then."""
    connection.execute(
        text(
            "INSERT INTO ledger_models (model, writers, fenced, head, head_hash, mirrored, moves) "
            "VALUES (:model, 0, 0, 0, '', 0, 0) ON CONFLICT DO NOTHING"
        ),
        {"model": model},
    )
    connection.execute(of(MODELS, model, select).with_for_update())


def earlier_count(connection: Connection, model: str) -> int:
    """Return how many rows of the model an earlier release wrote."""
    if not database.has_table(connection, EARLIER):
        return 0
    return int(connection.execute(of(EARLIER, model, select).with_only_columns(func.count())).scalar_one())


def of(table: Table, model: str, verb: Callable[[Table], Any]) -> Any:
    """Return a statement about the model's lines of a table."""
    return verb(table).where(table.c.model == model)


def _earlier(connection: Connection, ledger: str, model: str) -> tuple[StoredRow, ...]:
    """Return the rows of an earlier release as they come into the chain, always the same."""
    if not database.has_table(connection, EARLIER):
        return ()
    rows: list[StoredRow] = []
    before = chain.genesis(ledger, model)
    found = connection.execute(of(EARLIER, model, select).order_by(EARLIER.c.number)).mappings()
    for number, row in enumerate(found, 1):
        moved = row["action"] in ("promote", "rollback")
        content = chain.payload(
            model=model, number=number, writer=0, time=row["time"], actor={}, action=row["action"],
            version=row["version"], champion=row["version"] if moved else row["previous"], previous=row["previous"],
            decision=row["decision"], reasons=json.loads(row["reasons"]), facts=json.loads(row["facts"]), because="",
            taken_over=True,
        )  # fmt: skip
        rows.append(StoredRow(model, number, content, before, chain.row_hash(before, content), "", ""))
        before = rows[-1].hash
    return tuple(rows)
