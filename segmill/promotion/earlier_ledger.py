"""The ledger of earlier releases: one table, nothing signed; whoever uses it is to use segmill.promotion.ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    func,
    insert,
    select,
)
from sqlalchemy.exc import IntegrityError, OperationalError

from segmill.errors import InfrastructureError, InputError

ACTIONS = ("promote", "refuse", "rollback")

_PROMOTIONS = Table(
    "promotions",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("model", String(256), nullable=False),
    Column("number", Integer, nullable=False),
    Column("time", String(32), nullable=False),
    Column("action", String(16), nullable=False),
    Column("version", String(32), nullable=False),
    Column("previous", String(32)),
    Column("decision", String(16)),
    Column("reasons", Text, nullable=False),
    Column("facts", Text, nullable=False),
    UniqueConstraint("model", "number", name="one_entry_per_number"),
)


@dataclass(frozen=True)
class EarlierEntry:
    """One line of the ledger.

    Attributes:
        action: ``promote`` and ``rollback`` made ``version`` the champion; ``refuse`` left it as it was.
        model: the registered model's name.
        version: the registry's version that was judged, or went back to.
        previous: the champion's version before; None where there was none.
        decision: the gate's decision, PASS, FAIL or INCONCLUSIVE; None where the gate was not used.
        reasons: sentences.
        facts: JSON-able figures behind them.
        time: UTC, ISO 8601; given by ``append``.
        number: 1, 2, 3, ... per model; given by ``append``.
    """

    action: str
    model: str
    version: str
    previous: str | None
    decision: str | None = None
    reasons: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    time: str = ""
    number: int = 0


def append(url: str, entry: EarlierEntry, *, after: int) -> EarlierEntry:
    """Write an entry as number ``after`` + 1 of its model; return it with number and time.

    Two writers that compared with the same champion cannot both write: ``after`` is the last number the caller saw
    before it looked at the champion (0 for none), and each number exists once. So write here first, and move
    the registry's alias only then.

    Args:
        url: a SQLAlchemy URL, such as ``sqlite:///ledger.db``; the table is made where there is none.
        entry: its time and number do not matter.
        after: number of the model's last entry when the decision began.

    Raises:
        InputError: an unknown action.
        InfrastructureError: somebody else wrote meanwhile (judge again), or the database does not answer.
    """
    if entry.action not in ACTIONS:
        raise InputError(f"Action {entry.action} is unknown to the ledger; allowed are {', '.join(ACTIONS)}.")
    row = {
        "model": entry.model,
        "number": after + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "action": entry.action,
        "version": entry.version,
        "previous": entry.previous,
        "decision": entry.decision,
        "reasons": json.dumps(entry.reasons),
        "facts": json.dumps(entry.facts, allow_nan=False),
    }
    moved = f"The ledger of {entry.model} moved on while entry {after + 1} was prepared; judge again against"
    with _ledger(url) as engine, engine.begin() as connection:
        last = connection.execute(_last_number(entry.model)).scalar() or 0
        if last != after:
            raise InfrastructureError(f"{moved} the champion of entry {last}.")
        try:
            connection.execute(insert(_PROMOTIONS).values(row))
        except IntegrityError:
            raise InfrastructureError(f"{moved} today's champion.") from None
    return _entry(row)


def entries(url: str, model: str | None = None, *, limit: int | None = None) -> list[EarlierEntry]:
    """Return the ledger's entries, newest first; of one model, or of all. An absent ledger is empty.

    Raises:
        InfrastructureError: the database does not answer.
    """
    query = select(_PROMOTIONS).order_by(_PROMOTIONS.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(_PROMOTIONS.c.model == model)
    with _ledger(url) as engine, engine.connect() as connection:
        return [_entry(dict(row)) for row in connection.execute(query).mappings()]


def last_number(url: str, model: str) -> int:
    """Return the number of the model's last entry, 0 where there is none."""
    with _ledger(url) as engine, engine.connect() as connection:
        return int(connection.execute(_last_number(model)).scalar() or 0)


@contextmanager
def _ledger(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    try:
        _PROMOTIONS.metadata.create_all(engine)
        yield engine
    except OperationalError as error:
        where = engine.url.render_as_string(hide_password=True)
        reason = str(error.orig or error).strip().splitlines()[0]
        raise InfrastructureError(f"The ledger at {where} does not answer ({reason}); try again.") from error
    finally:
        engine.dispose()


def _last_number(model: str) -> Any:
    return select(func.max(_PROMOTIONS.c.number)).where(_PROMOTIONS.c.model == model)


def _entry(row: dict[str, Any]) -> EarlierEntry:
    values = {key: value for key, value in row.items() if key != "id"}
    return EarlierEntry(**values | {"reasons": json.loads(row["reasons"]), "facts": json.loads(row["facts"])})
