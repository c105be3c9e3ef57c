"""The audit log: who asked what, when, of which version, and what came of it. No row is ever changed.

No image, mask, key or address is in it, only sizes. Rows are written in batches by a thread, so that no request waits.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table, select, text

from segmill.errors import SegmillError
from segmill.promotion.database import Database, has_table, make_tables
from segmill.serving.lines import say

WRITE_EVERY_S = 1.0
MOST_WAITING = 100_000  # rows, while the database is away: some 20 MB

_TABLES = MetaData()
AUDIT = Table(
    "api_audit",
    _TABLES,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("time", String(32), nullable=False),
    Column("request", String(64), nullable=False),
    Column("key", String(16), nullable=False),
    Column("route", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("milliseconds", Integer, nullable=False),
)
_REFUSAL = "rows of the audit log stay as they are"
_TRIGGERS = {
    "sqlite": [
        f"CREATE TRIGGER api_audit_no_{what.lower()} BEFORE {what} ON api_audit "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        for what in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION api_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$",
        "CREATE TRIGGER api_audit_rows BEFORE UPDATE OR DELETE OR TRUNCATE ON api_audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION api_audit_refuse()",
    ],
}


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One request.

    Attributes:
        request: its id, which the reply and the log line name too.
        key: the id of the key, "" where none was known.
        route: as the service declares it, so without what a client wrote into the address.
        version: of the model that answered, "" where none did.
        status: of HTTP.
        images, bytes_in, bytes_out, milliseconds: how much came and went, and how long it took.
        time: when it was answered, UTC, ISO 8601.
    """

    request: str
    key: str
    route: str
    version: str
    status: int
    images: int
    bytes_in: int
    bytes_out: int
    milliseconds: int
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


class AuditLog:
    """The rows in a ledger's database; ``add`` never waits. Made by ``audit_log``."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._waiting: queue.SimpleQueue[AuditRow] = queue.SimpleQueue()  # its reader never keeps a writer out
        self._over = threading.Event()
        self.lost = 0

    def add(self, row: AuditRow) -> None:
        """Add a row; where too many wait for the database it is counted in ``lost`` instead."""
        if self._waiting.qsize() >= MOST_WAITING:
            self.lost += 1
        else:
            self._waiting.put(row)

    def write(self) -> None:
        """Write rows until the log ends; what the database does not take now is tried again each time."""
        rows: list[AuditRow] = []
        over, trouble = False, ""
        while not over:
            over = self._over.wait(WRITE_EVERY_S)
            rows += self._taken(MOST_WAITING - len(rows))
            if rows:
                try:
                    self._insert(rows)
                    rows, trouble = [], ""
                except (SegmillError, OSError) as error:
                    if str(error) != trouble:
                        say("the audit log is not written", why=str(error), rows_that_wait=len(rows))
                    trouble = str(error)
        self.lost += len(rows)

    def end(self) -> None:
        """Let ``write`` write what is there and return."""
        self._over.set()

    def last(self, count: int) -> list[dict[str, object]]:
        """Return the last rows that were written, the newest first. Raises InfrastructureError."""
        with self._database.reading() as connection:
            if connection is None or not has_table(connection, AUDIT):
                return []
            newest = select(AUDIT).order_by(AUDIT.c.number.desc()).limit(count)
            return [dict(row) for row in connection.execute(newest).mappings()]

    def _taken(self, most: int) -> list[AuditRow]:
        rows: list[AuditRow] = []
        with suppress(queue.Empty):
            while len(rows) < most:
                rows.append(self._waiting.get_nowait())
        return rows

    def _insert(self, rows: Sequence[AuditRow]) -> None:
        with self._database.writing() as connection:
            make_audit(connection)
            # inline: asks for no numbers back, which would take the right to read rows
            connection.execute(AUDIT.insert().inline(), [vars(row) for row in rows])


def make_audit(connection: Connection) -> None:
    """Make the table of the audit log, and what keeps its rows from being changed, where it is not there."""
    if make_tables(connection, _TABLES, AUDIT, 7365680):
        for trigger in _TRIGGERS[connection.dialect.name]:
            connection.execute(text(trigger))


@contextmanager
def audit_log(url: str) -> Iterator[AuditLog]:
    """Have a log while the block runs; what it was given is written when the block has ended, where that goes."""
    log = AuditLog(url)
    writing = threading.Thread(target=log.write, name="audit log", daemon=True)
    writing.start()
    try:
        yield log
    finally:
        log.end()
        writing.join()
