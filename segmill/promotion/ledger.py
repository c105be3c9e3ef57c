"""The ledger, the truth about who serves: rows that are only appended, fenced, chained by hash and signed, in SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from segmill.errors import InfrastructureError, InputError, SegmillError
from segmill.promotion import chain, database, lease, outbox, points, stored
from segmill.promotion.chain import StoredRow, Witness
from segmill.promotion.database import MODELS, MOVES, ROWS, Database
from segmill.promotion.identity import actor
from segmill.promotion.keys import SigningKey, TrustedKeys, signing_key, trusted_keys
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.rows import Entry, LedgerRow, champion
from segmill.promotion.stored import Known

MOVE_TAKES = timedelta(minutes=10)  # a move of the alias that was begun longer ago will not come any more
InTransaction = Callable[[Connection, LedgerRow], None]


class LedgerError(SegmillError):
    """The ledger, or what MLflow says of it, is not to be believed, so nothing may be decided by it."""


class Conflict(InfrastructureError):
    """Somebody appended since the judgement began: begin again, and judge against today's champion."""


@dataclass(frozen=True)
class Writer:
    """Who may append one row after those it saw.

    Attributes:
        model: the registered model's name.
        number: the fencing number. Once a higher one has appended, this one never can.
        rows: all rows of the model when it began, oldest first, each verified.
        head: number of the last of them, 0 where there is none.
        head_hash: its hash.
    """

    model: str
    number: int
    rows: tuple[LedgerRow, ...]
    head: int
    head_hash: str

    @property
    def champion(self) -> str | None:
        """The version that served when it began."""
        return champion(self.rows)

    def after(self, row: LedgerRow) -> Writer:
        """Return the same writer once it has appended ``row``."""
        return replace(self, rows=(*self.rows, row), head=row.number, head_hash=row.hash)


@dataclass(frozen=True)
class Position:
    """Where a model's ledger and its mirror are, at one moment.

    Attributes:
        ledger: the ledger's random name; "" where its tables are not there.
        rows: of the model, oldest first.
        doubts: sentences on what is wrong with them; none: they may decide.
        mirrored: number of the last row that MLflow was brought in line with.
        moving: versions that somebody of this ledger may be setting as champion right now; "" is none.
        at: changes with every row and with every move of the alias.
    """

    ledger: str
    rows: tuple[LedgerRow, ...]
    doubts: tuple[str, ...]
    mirrored: int
    moving: frozenset[str]
    at: tuple[object, ...]


def open_ledger(
    url: str,
    *,
    trusted: TrustedKeys,
    key: SigningKey | None = None,
    root: Path | None = None,
    in_transaction: InTransaction | None = None,
) -> Ledger:
    """Return the ledger in a database; nothing is read or made yet.

    Args:
        url: a SQLAlchemy URL of SQLite or PostgreSQL; see ``ledger_url``.
        trusted: whose signatures are believed.
        key: signs what is appended; None takes that of whoever runs this, when it is needed.
        root: the workspace, whose git configuration says who acts.
        in_transaction: called with every row in the transaction that appends it: what it writes is there with it.

    Raises:
        InputError: the address is none, or its driver is not installed.
    """
    return Ledger(Database(url), trusted, key, root, in_transaction)


def workspace_ledger(root: Path, named: str | None = None) -> Ledger:
    """Return the ledger of the workspace at ``root``, whose rows bring their notices (``outbox``).

    ``named``: promotion.ledger_url. Errors as ``open_ledger``.
    """
    url = ledger_url(root, named)
    return open_ledger(url, trusted=trusted_keys(root), root=root, in_transaction=outbox.add)


class Ledger:
    """A ledger: rows of one sequence per model. Made by ``open_ledger``. Every method may raise InfrastructureError."""

    def __init__(
        self,
        where: Database,
        trusted: TrustedKeys,
        key: SigningKey | None,
        root: Path | None,
        in_transaction: InTransaction | None,
    ) -> None:
        self._database = where
        self._trusted = trusted
        self._key = key
        self._root = root
        self._in_transaction = in_transaction

    @property
    def address(self) -> str:
        """Where its database is, without user and password."""
        return self._database.address

    def models(self) -> list[str]:
        """Return the models that have rows, by name."""
        with self._database.reading() as connection:
            return [] if connection is None else stored.models(connection)

    def rows(self, model: str | None = None, *, limit: int | None = None) -> list[LedgerRow]:
        """Return the rows of a model, or of all, oldest first; those that are not to be believed say why.

        Args:
            limit: so many of the newest.
        """
        with self._database.reading() as connection:
            if connection is None:
                return []
            names = stored.models(connection) if model is None else [model]
            found = [self._read(stored.known(connection, name)) for name in names]
        rows = sorted((row for one in found for row in one), key=lambda row: (row.time, row.model, row.number))
        rows = found[0] if len(found) == 1 else rows
        return rows if limit is None else rows[len(rows) - min(limit, len(rows)) :]

    def begin(self, model: str) -> Writer:
        """Begin a judgement: take the next fencing number, and see what there is.

        Raises:
            LedgerError: a row is not to be believed.
            LeaseLost: this process held the model's lease, and another run took it over.
        """
        with self._database.writing() as connection:
            stored.lock(connection, model)
            lease.refuse_lost(connection, database.ledger_id(connection), model)
            connection.execute(stored.of(MODELS, model, update).values(writers=MODELS.c.writers + 1))
            known = stored.known(connection, model)
        rows = self._read(known)
        self._refuse(_findings(known, rows))
        return Writer(model, int(known.line["writers"]), tuple(rows), *known.last)

    def append(self, writer: Writer, entry: Entry) -> LedgerRow:
        """Write a row after those that the writer saw, signed, and return it.

        The rows of an earlier release come into the chain with the first one.

        Raises:
            Conflict: somebody appended since; nothing was written.
            InputError: there is no key to sign with, it is not trusted here, or the entry contradicts itself.
            LedgerError: the last row is another one than the database says.
            LeaseLost: this process held the model's lease, and another run took it over.
            ValueError: a figure that JSON does not have.
        """
        made = self._sign(writer, entry, self._trusted_key())
        points.at("before append")
        with self._database.writing() as connection:
            stored.lock(connection, writer.model)
            known = stored.known(connection, writer.model)
            lease.refuse_lost(connection, known.ledger, writer.model)
            _refuse_the_late(known, writer)
            self._refuse(_about_the_line(known))
            taken_over = known.rows if known.earlier else ()
            connection.execute(insert(ROWS), [asdict(one) for one in (*taken_over, made)])
            mirrored = max(known.line["mirrored"], len(taken_over))  # earlier releases set the alias right after
            line = {"head": made.number, "head_hash": made.hash, "fenced": writer.number, "mirrored": mirrored}
            connection.execute(stored.of(MODELS, writer.model, update).values(line))
            row = chain.row_of(made)
            if self._in_transaction:
                self._in_transaction(connection, row)
            points.at("in append")
        points.at("after append")
        return row

    def verify(self, model: str, witnesses: Iterable[Witness] = ()) -> list[str]:
        """Return a sentence for everything that is wrong with the rows of a model; none: it is whole.

        Args:
            witnesses: what places outside the database say of it (``heads.witnesses``). Without any, an old copy of the
                database is not found.
        """
        with self._database.reading() as connection:
            known = stored.known(connection, model) if connection else Known(model)
            written = stored.earlier_count(connection, model) if connection else 0
        rows = self._read(known)
        found = _findings(known, rows)
        taken_over = sum(row.taken_over for row in rows)
        if written > taken_over:
            found.append(
                f"an earlier release of segmill wrote {written - taken_over} rows of {model} into its own table since "
                "this one took that over: they do not count; use one release"
            )
        return found + [said for one in witnesses if (said := chain.contradiction(one, known.ledger, rows))]

    def position(self, model: str) -> Position:
        """Return where the model's ledger and its mirror are. Rows that are not to be believed are among them."""
        with self._database.reading() as connection:
            known = stored.known(connection, model) if connection else Known(model)
            moving: Iterable[str] = ()
            if connection and known.ledger:
                query = stored.of(MOVES, model, select).where(MOVES.c.time >= _moves_since())
                moving = connection.execute(query.with_only_columns(MOVES.c.version)).scalars().all()
        rows = tuple(self._read(known))
        doubts = tuple(_findings(known, rows))
        return Position(known.ledger, rows, doubts, known.line.get("mirrored", 0), frozenset(moving), known.at)

    def is_at(self, model: str, position: Position) -> bool:
        """Tell whether nobody appended or set out to move the alias since ``position`` was read."""
        with self._database.reading() as connection:
            return (stored.at(connection, model) if connection else Known(model).at) == position.at

    def named(self) -> str:
        """Return the ledger's random name; its tables are made where they are not there."""
        with self._database.writing() as connection:
            return database.ledger_id(connection)

    def begin_move(self, model: str, version: str | None) -> int:
        """Note that MLflow's alias is about to be set to ``version`` (None: taken away); return the move's number."""
        with self._database.writing() as connection:
            stored.lock(connection, model)
            connection.execute(stored.of(MODELS, model, update).values(moves=MODELS.c.moves + 1))
            now = datetime.now(UTC).isoformat(timespec="seconds")
            made = connection.execute(insert(MOVES).values(model=model, version=version or "", time=now))
            (number,) = made.inserted_primary_key or (0,)
            return int(number)

    def mirrored(self, model: str, row: int, moves: Iterable[int] = ()) -> None:
        """Note that MLflow was seen in line with row number ``row``, and that these moves are done."""
        with self._database.writing() as connection:
            stored.lock(connection, model)
            connection.execute(stored.of(MODELS, model, update).where(MODELS.c.mirrored < row).values(mirrored=row))
            done = MOVES.c.id.in_(list(moves)) | (MOVES.c.time < _moves_since())
            connection.execute(stored.of(MOVES, model, delete).where(done))

    def _read(self, known: Known) -> list[LedgerRow]:
        return chain.read_rows(known.rows, known.ledger, known.model, self._trusted)

    def _refuse(self, findings: Sequence[str]) -> None:
        if findings:
            raise LedgerError(
                f"{findings[0]}; nothing is decided by the ledger at {self.address} until `segmill ledger verify` "
                "finds it whole"
            )

    def _trusted_key(self) -> SigningKey:
        key = self._key or signing_key()
        if key.public.id not in {one.id for one in self._trusted.keys}:
            raise InputError(
                f"{self._trusted.source} does not list the key {key.public.id} of whoever runs this, so no row that it "
                "signs would be believed",
                "add it with `segmill signing setup`, or have somebody add it who is listed",
            )
        return key

    def _sign(self, writer: Writer, entry: Entry, key: SigningKey) -> StoredRow:
        content = chain.payload(
            model=writer.model,
            number=writer.head + 1,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            action=entry.action,
            version=entry.version,
            champion=entry.version if entry.makes_champion() else writer.champion,
            previous=writer.champion,
            decision=entry.decision,
            reasons=list(entry.reasons),
            facts=entry.facts,
            because=entry.because,
            actor=actor(self._root),
            writer=writer.number,
        )
        hashed = chain.row_hash(writer.head_hash, content)
        signature = key.sign(chain.message(hashed))
        return StoredRow(writer.model, writer.head + 1, content, writer.head_hash, hashed, key.public.id, signature)


def _moves_since() -> str:
    return (datetime.now(UTC) - MOVE_TAKES).isoformat(timespec="seconds")


def _refuse_the_late(known: Known, writer: Writer) -> None:
    """Raise Conflict where somebody appended since the writer began."""
    if known.line["fenced"] > writer.number:
        raise Conflict(
            f"a later writer (number {known.line['fenced']}) has appended to the ledger of {writer.model}, so number "
            f"{writer.number} no longer may; judge again against today's champion"
        )
    if known.last != (writer.head, writer.head_hash):
        raise Conflict(
            f"row {known.last[0]} of {writer.model} was appended after this judgement began with row {writer.head}; "
            "judge again against today's champion"
        )


def _findings(known: Known, rows: Sequence[LedgerRow]) -> list[str]:
    """Return what is wrong with the rows; nothing is known of those of an earlier release."""
    return [] if known.earlier else chain.doubts(rows) + _about_the_line(known)


def _about_the_line(known: Known) -> list[str]:
    """Return how the database's own line on the model contradicts the rows."""
    if known.earlier:
        return []
    line, model, last = known.line, known.model, known.last
    found = []
    if not line:
        return [f"the database has lost its line on {model}, which says which row is the last"]
    if (line["head"], line["head_hash"]) != last:
        found.append(
            f"the database says that row {line['head']} of {model} is the last, and there the last is row {last[0]}: "
            "rows were removed or rewritten, or what it says was edited"
        )
    if line["writers"] < line["fenced"]:
        found.append(f"the fencing numbers of {model} were edited: the last one given is below the one last used")
    if line["mirrored"] > last[0]:
        found.append(f"the database says that row {line['mirrored']} of {model} is mirrored, and there is no such row")
    return found
