"""One run per model at a time: a lease in the ledger's database that a dead holder loses and a late one cannot use.

Leases: Gray and Cheriton, 1989; the fencing number: Kleppmann, "How to do distributed locking", 2016.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    literal_column,
    select,
    update,
)

from segmill import owner
from segmill.errors import InfrastructureError, SegmillError
from segmill.promotion.database import Database, has_table, ledger_id, make_tables
from segmill.promotion.outbox import insert_new

_TABLES = MetaData()
# One line per model. ``token`` "": nobody holds it. ``number``: the fencing number, one more with each holder.
# ``process``: the holder's, as ``segmill.owner`` names it. Times are seconds since 1970 by the database's clock.
# ``covered_s``: when the last run began that did all its work, ``covered_by`` that run, ``covered_work`` that work.
LEASES = Table(
    "ledger_leases",
    _TABLES,
    Column("model", String(256), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("token", String(32), nullable=False),
    Column("what", String(256), nullable=False),
    Column("process", String(512), nullable=False),
    Column("since_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("renewals", Integer, nullable=False),
    Column("covered_s", Float, nullable=False),
    Column("covered_by", String(256), nullable=False),
    Column("covered_work", String(256), nullable=False),
)
# SQLite has no clock but that of the process which asks, so an expired lease is watched there before it is taken over.
# One that expires later than any could by the clock which asks was written by a clock that was wrong: expired as well.
_CLOCKS = {
    "postgresql": "EXTRACT(EPOCH FROM clock_timestamp())::float8",
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}


@dataclass(frozen=True)
class Timing:
    """Seconds a lease lasts without renewal, between two renewals, and between two looks of who waits for it."""

    duration_s: float = 60.0
    renew_s: float = 10.0
    look_s: float = 2.0


class LeaseHeld(InfrastructureError):
    """Another run of the model holds the lease. Exit code 4: try again."""


class LeaseLost(InfrastructureError):
    """Another run took the lease over, since this one was not heard of for too long; nothing more may be recorded."""


@dataclass(frozen=True)
class Holder:
    """Who holds a model's lease.

    Attributes:
        model: the registered model's name.
        what: the run, as it named itself.
        host, pid: where its process is.
        since: when it got the lease, local time, ISO 8601.
        expired: it was not renewed in time; the next run takes it over.
    """

    model: str
    what: str
    host: str
    pid: int
    since: str
    expired: bool

    def __str__(self) -> str:
        late = ", which was not heard of for too long" if self.expired else ""
        return f"{self.what} on {self.host} (process {self.pid}) since {self.since}{late}"


@dataclass(frozen=True)
class Held:
    """Another run holds it; ``state`` changes with every renewal."""

    by: Holder
    state: tuple[int, int]


@dataclass(frozen=True)
class Covered:
    """The last run that did all its work.

    Attributes:
        began_s: when it began, seconds since 1970 by the database's clock.
        by: the run, as it named itself.
        work: what it did all of, as it named that; only a run of the same work may rely on it.
    """

    began_s: float
    by: str
    work: str


class Lease:
    """A lease that this process holds; a thread renews it. Made by ``leased``.

    Attributes:
        model: the registered model's name.
        number: the fencing number, one more with each holder.
        before: the last run that did all its work before this one got the lease; None: there was none.
        died: the run that held it before and did not give it back, as it named itself; "" where it did.
        ledger: the random name of the ledger it is in.
    """

    def __init__(self, database: Database, model: str, what: str, timing: Timing) -> None:
        self.model = model
        self.number = 0
        self.ledger = ""
        self.before: Covered | None = None
        self.died = ""
        self._database, self._what, self._timing = database, what, timing
        self._token = secrets.token_hex(8)
        self._ended, self._lost = threading.Event(), threading.Event()

    @property
    def lost(self) -> bool:
        """Whether another run is known to have taken it over."""
        return self._lost.is_set()

    def refuse_lost(self, connection: Connection | None = None) -> None:
        """Raise LeaseLost where another run took the lease over; asked in the transaction of ``connection``, if any."""
        if not self.lost and connection is not None and not self._is_ours(connection):
            self._lost.set()
        if self.lost:
            raise LeaseLost(
                f"another run of {self.model} took its lease over from {self._what} (number {self.number}), which was "
                "not heard of for too long; nothing more is recorded, and the next run uses what was finished"
            )

    def refuse_lost_now(self) -> None:
        """As ``refuse_lost``, after a look into the database; where that does not answer, nobody else can take it."""
        with suppress(InfrastructureError), self._database.reading() as connection:
            if connection is not None and not self._is_ours(connection):
                self._lost.set()
        self.refuse_lost()

    def take(self, watched_s: float) -> Held | None:
        """Try to take it; return who holds it, None where it is ours now.

        Args:
            watched_s: for so long, by a clock that nobody sets, the holder was seen not to renew it.
        """
        with self._database.writing() as connection:
            row = _locked(connection, self.model)
            now = _now(connection)
            if row["token"] and watched_s < self._watch_s(connection, row, now):
                return Held(_holder(row, now, self._timing), (row["number"], row["renewals"]))
            mine = {
                "number": row["number"] + 1, "token": self._token, "what": self._what[:256],
                "process": owner.this_process(), "since_s": now, "expires_s": now + self._timing.duration_s,
                "renewals": 0,
            }  # fmt: skip
            connection.execute(_of(update, self.model).values(mine))
            self.number, self.ledger = mine["number"], ledger_id(connection)
            covered = Covered(row["covered_s"], row["covered_by"], row["covered_work"])
            self.before = covered if row["covered_s"] else None
            self.died = row["what"] if row["token"] else ""
        return None

    def keep(self, on_lost: Callable[[], None]) -> None:
        """Renew it until it ends or is lost; where the database does not answer, nobody else can take it, so try on."""
        while not self._ended.wait(self._timing.renew_s):
            try:
                with self._database.writing() as connection:
                    renewed = _now(connection) + self._timing.duration_s
                    mine = self._mine(update).values(expires_s=renewed, renewals=LEASES.c.renewals + 1)
                    still = connection.execute(mine).rowcount == 1
            except (SegmillError, OSError):
                continue
            if not still and not self._ended.is_set():
                self._lost.set()
                on_lost()
                return

    def complete(self, work: str) -> None:
        """Note that the run did all of this work: what was due of it when the run began is done."""
        with self._database.writing() as connection:
            done = {"covered_s": LEASES.c.since_s, "covered_by": self._what[:256], "covered_work": work[:256]}
            if connection.execute(self._mine(update).values(done)).rowcount != 1:
                self._lost.set()
        self.refuse_lost()

    def release(self) -> None:
        """Give it back, so that the next run need not wait until it expires; nothing where it is not ours any more."""
        self._ended.set()
        with suppress(SegmillError, OSError), self._database.writing() as connection:
            connection.execute(self._mine(update).values(token="", expires_s=0.0))

    def _watch_s(self, connection: Connection, row: dict[str, Any], now: float) -> float:
        """Return for how many seconds the holder must be seen not to renew it before it is taken for dead."""
        if owner.is_gone(row["process"]) or (now > row["expires_s"] and connection.dialect.name == "postgresql"):
            return 0.0
        return 2 * self._timing.renew_s if _expired(row, now, self._timing) else self._timing.duration_s

    def _mine(self, verb: Callable[[Table], Any]) -> Any:
        return _of(verb, self.model).where(LEASES.c.number == self.number, LEASES.c.token == self._token)

    def _is_ours(self, connection: Connection) -> bool:
        return connection.execute(self._mine(select)).first() is not None


_held: dict[tuple[str, str], Lease] = {}  # by ledger and model: what this process may lose


@contextmanager
def leased(
    url: str,
    model: str,
    what: str,
    *,
    wait_s: float = 0.0,
    say: Callable[[str], None] = lambda sentence: None,
    on_lost: Callable[[], None] = lambda: None,
    timing: Timing = Timing(),
) -> Iterator[Lease]:
    """Hold the model's lease while the block runs: no other run of the model does, on any machine.

    While it is held, the ledger takes rows of the model from this process only as long as nobody took it over.

    Args:
        url: the ledger's address, see ``ledger_url``.
        model: the registered model's name.
        what: how this run is named to others.
        wait_s: how long to wait while another run holds it.
        say: is given the sentence about the other run before the wait begins.
        on_lost: is called in another thread when another run was seen to have taken it over.

    Raises:
        LeaseHeld: another run holds it.
        LeaseLost: it was taken over while the block ran.
        InfrastructureError: the database does not answer.
    """
    lease = Lease(Database(url), model, what, timing)
    _wait_for(lease, wait_s, say, timing)
    key = (lease.ledger, model)
    _held[key] = lease
    renewing = threading.Thread(target=lease.keep, args=(on_lost,), daemon=True, name=f"lease of {model}")
    renewing.start()
    try:
        yield lease
        lease.refuse_lost()
    finally:
        del _held[key]
        lease.release()


def holds(model: str) -> bool:
    """Tell whether this process holds the model's lease, in whatever ledger."""
    return any(held == model for _, held in _held)


def refuse_lost(connection: Connection, ledger: str, model: str) -> None:
    """Raise LeaseLost where this process held the model's lease in this ledger and another run took it over."""
    if lease := _held.get((ledger, model)):
        lease.refuse_lost(connection)


def refuse_lost_of(model: str) -> None:
    """Raise LeaseLost where this process held the model's lease, in whatever ledger, and another run took it over."""
    for (_, held), lease in tuple(_held.items()):
        if held == model:
            lease.refuse_lost_now()


def who_holds(url: str, model: str) -> Holder | None:
    """Return who holds the model's lease; None: nobody, or its process on this machine is gone."""
    with Database(url).reading() as connection:
        if connection is None or not has_table(connection, LEASES):
            return None
        row = connection.execute(_of(select, model)).mappings().one_or_none()
        if row is None or not row["token"] or owner.is_gone(row["process"]):
            return None
        return _holder(dict(row), _now(connection), Timing())


def _wait_for(lease: Lease, wait_s: float, say: Callable[[str], None], timing: Timing) -> None:
    began, seen, seen_at, alive, said = time.monotonic(), None, 0.0, False, False
    while held := lease.take(time.monotonic() - seen_at if seen else 0.0):
        if held.state != seen:
            alive = seen is not None  # it renewed, whatever the clocks say
            seen, seen_at = held.state, time.monotonic()
        by = replace(held.by, expired=held.by.expired and not alive)
        if time.monotonic() - began >= wait_s and not by.expired:
            raise LeaseHeld(f"{lease.model} is being retrained by {by}; wait until that is done")
        if wait_s and not said:
            say(f"waiting for {by}, which retrains {lease.model}")
            said = True
        time.sleep(timing.look_s)


def _locked(connection: Connection, model: str) -> dict[str, Any]:
    """Return the model's line, which nobody else changes until the transaction ends."""
    make_tables(connection, _TABLES, LEASES, 7365678)
    free = {column.name: "" if isinstance(column.type, String) else 0 for column in LEASES.columns} | {"model": model}
    connection.execute(insert_new(connection, LEASES).values(free).on_conflict_do_nothing())
    return dict(connection.execute(_of(select, model).with_for_update()).mappings().one())


def _of(verb: Callable[[Table], Any], model: str) -> Any:
    return verb(LEASES).where(LEASES.c.model == model)


def _now(connection: Connection) -> float:
    return float(connection.execute(select(literal_column(_CLOCKS[connection.dialect.name]))).scalar_one())


def _expired(row: dict[str, Any], now: float, timing: Timing) -> bool:
    return not now <= row["expires_s"] <= now + 2 * timing.duration_s


def _holder(row: dict[str, Any], now: float, timing: Timing) -> Holder:
    since = datetime.fromtimestamp(row["since_s"]).astimezone().isoformat(" ", "seconds")
    host, pid, _ = row["process"].split(" ")
    return Holder(row["model"], row["what"], host, int(pid), since, _expired(row, now, timing))
