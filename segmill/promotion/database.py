"""The ledger's tables and the connection to its database, SQLite or PostgreSQL; no message shows a password."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.pool import NullPool

from segmill.errors import InfrastructureError, InputError
from segmill.promotion.ledger_url import URL_VARIABLE

SCHEMA = "1"
WAIT_S = 30  # for another writer's transaction, which takes milliseconds

_TABLES = MetaData()
META = Table(
    "ledger_meta", _TABLES, Column("key", String(16), primary_key=True), Column("value", String(64), nullable=False)
)
ROWS = Table(
    "ledger_rows",
    _TABLES,
    Column("model", String(256), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("payload", Text, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("signature", String(128), nullable=False),
)
# One line per model. ``writers``: the last fencing number given; ``fenced``: that of the last row's writer; ``head``
# and ``head_hash``: the last row; ``mirrored``: the last row that MLflow was brought in line with; ``moves``: how often
# somebody set out to move the alias.
MODELS = Table(
    "ledger_models",
    _TABLES,
    Column("model", String(256), primary_key=True),
    Column("writers", Integer, nullable=False, default=0),
    Column("fenced", Integer, nullable=False, default=0),
    Column("head", Integer, nullable=False, default=0),
    Column("head_hash", String(64), nullable=False, default=""),
    Column("mirrored", Integer, nullable=False, default=0),
    Column("moves", Integer, nullable=False, default=0),
)
# Moves of the alias that were begun and not seen to be done. ``version`` "": the alias is taken away.
MOVES = Table(
    "ledger_moves",
    _TABLES,
    Column("id", Integer, primary_key=True),
    Column("model", String(256), nullable=False),
    Column("version", String(32), nullable=False),
    Column("time", String(32), nullable=False),
)
# What earlier releases wrote: read, never written.
EARLIER = Table(
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
)


def parse_url(url: str) -> URL:
    """Return a SQLAlchemy URL with the driver that segmill uses.

    Raises:
        InputError: it is none, names another database than SQLite or PostgreSQL, or its password is ambiguous. The
            message does not show it.
    """
    named = f"the ledger's address (promotion.ledger_url or {URL_VARIABLE})"
    host = "" if url.startswith("sqlite") else url.partition("?")[0]
    if host.count("@") > 1 or re.match(r"[^/]*//[^@]*/[^@]*@", host):
        raise InputError(f"{named} has an @ or / in its password", "write them as %40 and %2F")
    try:
        parsed = make_url(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url))
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(
            f"{named} is none of SQLite or PostgreSQL", "write sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        )
    return parsed


def address(url: URL) -> str:
    """Return where the database is, without user, password and options."""
    return URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database).render_as_string()


class Database:
    """A database that holds ledgers, opened anew for each transaction: nothing is shared with forked processes."""

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        self.address = address(self._url)
        self._engine = self._create()

    @contextmanager
    def reading(self) -> Iterator[Connection | None]:
        """Yield a connection that sees one moment; None where the database is a file that is not there."""
        path = self._url.database if self._url.get_backend_name() == "sqlite" else None
        if path and not Path(path).exists():
            yield None
            return
        isolation: Any = {} if path else {"isolation_level": "REPEATABLE READ"}
        with self._saying(), self._engine.connect().execution_options(**isolation) as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection whose changes are there after the block, all or none; the tables are there."""
        with self._saying(), self._engine.connect().execution_options(writing=True) as connection, connection.begin():
            if self._url.get_backend_name() == "postgresql":
                connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_S}s'"))
                connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{2 * WAIT_S}s'"))
            _make_tables(connection)
            yield connection

    def _create(self) -> Engine:
        sqlite = self._url.get_backend_name() == "sqlite"
        wait: dict[str, Any] = {"timeout": WAIT_S} if sqlite else {"connect_timeout": 10}
        try:
            engine = create_engine(self._url, poolclass=NullPool, connect_args=wait)
        except (NoSuchModuleError, ModuleNotFoundError):
            raise InputError(
                f"the ledger at {self.address} needs a driver for its database",
                "pip install 'segmill[postgres]' for PostgreSQL",
            ) from None
        if sqlite:
            # sqlite3 begins a transaction only with its first write, too late to be alone from the first read.
            event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
            event.listen(engine, "begin", _begin_in_sqlite)
        return engine

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, InternalError) as error:
            reason = self._reason(error)
            if "disk is full" in reason:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._url.database) from None
            raise InfrastructureError(f"the ledger at {self.address} does not answer ({reason}); try again") from None
        except DatabaseError as error:
            raise InputError(f"the ledger at {self.address} cannot be used ({self._reason(error)})") from None

    def _reason(self, error: DatabaseError | InterfaceError) -> str:
        lines = str(error.orig or error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        for secret in {self._url.password, unquote(str(self._url.password or ""))} - {None, ""}:
            reason = reason.replace(str(secret), "***")
        return reason


def has_table(connection: Connection, table: Table) -> bool:
    """Tell whether the database has the table."""
    return inspect(connection).has_table(table.name)


def ledger_id(connection: Connection) -> str:
    """Return the random name that the ledger got when its tables were made; "" where they are not there.

    Raises InputError where a newer release made them.
    """
    if not has_table(connection, META):
        return ""
    found = {key: value for key, value in connection.execute(select(META.c.key, META.c.value))}
    if found.get("schema") != SCHEMA:
        raise InputError(
            f"the ledger's tables have schema {found.get('schema')}, and this segmill knows {SCHEMA}",
            "use the release that wrote them, or a newer one",
        )
    return str(found.get("ledger", ""))


def make_tables(connection: Connection, tables: MetaData, last: Table, lock: int) -> bool:
    """Make ``tables`` unless ``last`` of them is there; return whether they were made.

    ``lock``: a number of these tables' own. Of two who made a table of PostgreSQL at once one would fail.
    """
    if has_table(connection, last):
        return False
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({lock})"))
        if has_table(connection, last):
            return False
    tables.create_all(connection)
    return True


def _make_tables(connection: Connection) -> None:
    if not make_tables(connection, _TABLES, META, 7365676):
        return
    own = {"schema": SCHEMA, "ledger": secrets.token_hex(8)}
    connection.execute(META.insert(), [{"key": key, "value": value} for key, value in own.items()])


def _begin_in_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
