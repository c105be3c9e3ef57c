"""Sends the outbox's notices until each target has them: at least once, by any process, later where one fails.

Who sends a notice holds it for ``LEASE_S``; where that process ends in between, it is sent again, with the same id.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    literal,
    select,
    update,
)

from segmill.errors import SegmillError
from segmill.promotion.database import Database, has_table
from segmill.promotion.outbox import DELIVERIES, NOTICES, TARGETS, Notice, insert_new

LEASE_S = 60.0  # longer than any caller's patience
FIRST_RETRY_S, LONGEST_RETRY_S = 10.0, 3600.0  # doubled after each failure
KEPT_S = 30 * 24 * 3600.0  # what every target has, and targets that no settings name any more
PATIENCE_S = 10.0
GRACE_S = 0.2  # in which a thread whose time has ended says so, rather than being left behind


@dataclass(frozen=True)
class Target:
    """Where notices of some ``kinds`` go.

    ``name`` identifies it in the database and in messages, so it holds no secret. ``send`` is given a notice and the
    seconds it has; it raises where the notice did not arrive, and is called in a thread of its own. The modules that it
    needs are ``imports``; they are imported in the caller's thread, outside the patience, since a process that ends
    while a thread still imports a library of compiled code is aborted.
    """

    name: str
    kinds: frozenset[str]
    send: Callable[[Notice, float], None]
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivered:
    """What came of a delivery: notices ``sent`` and ``failed`` now, those that wait, and why the last failure was."""

    sent: int = 0
    failed: int = 0
    waiting: int = 0
    last_error: str | None = None


def deliver(
    url: str, targets: Sequence[Target], *, now: float | None = None, patience_s: float = PATIENCE_S
) -> Delivered:
    """Send what is due to each target, at least once, the oldest first; never raise for a target or a database.

    A target that settings name for the first time gets the notices that no delivery has seen yet, and all later ones.
    Targets are sent to side by side. One that fails is left alone for 10 s, then 20 s, and so on up to an hour.

    Args:
        url: SQLAlchemy URL of the ledger; one that is not there, or has no outbox, has nothing to send.
        targets: all that the settings name now.
        now: seconds since 1970; None asks the clock.
        patience_s: seconds after which no answer counts as a failure; below ``LEASE_S``.
    """
    moment = time.time() if now is None else now
    try:
        place = Database(url)
        if not _has_outbox(place):
            return Delivered()
        _assign(place, targets, moment)
        sent, failed = _send_all(place, targets, moment, patience_s)
        _forget(place, moment)
        return replace(_state(place, targets), sent=sent, failed=failed)
    except (SegmillError, OSError) as error:
        return Delivered(last_error=one_line(str(error)))


def one_line(text: str) -> str:
    """Return a text as one line of at most 300 characters."""
    return " ".join(text.split())[:300]


def _has_outbox(place: Database) -> bool:
    with place.reading() as connection:
        return connection is not None and has_table(connection, DELIVERIES)


def _ask(place: Database, query: Select[Any]) -> Sequence[Any]:
    with place.reading() as connection:
        return connection.execute(query).all() if connection else []


def _assign(place: Database, targets: Sequence[Target], now: float) -> None:
    """Give every target a delivery of each notice that it has none of. A new one has those before it for delivered.

    The same holds for kinds that the target does not want, so that it gets none of the past when it wants them later.
    """
    names = [target.name for target in targets]
    lacking = [_lacks(target.name) for target in targets]
    lately = select(TARGETS.c.name).where(TARGETS.c.name.in_(names), TARGETS.c.named_s > now - 24 * 3600)
    open_ = [select(NOTICES.c.id).where(one).limit(1) for one in (~NOTICES.c.settled, *lacking)]
    if len(_ask(place, lately)) == len(set(names)) and not any(_ask(place, one) for one in open_):
        return  # the usual case: nothing is written
    with place.writing() as connection:
        for target, lacks in zip(targets, lacking, strict=True):
            name = literal(target.name)
            named = insert_new(connection, TARGETS).values(name=target.name, named_s=now).on_conflict_do_nothing()
            if connection.execute(named.returning(TARGETS.c.name)).first():
                past = select(NOTICES.c.id, name, literal(0), literal(now), literal(now)).where(NOTICES.c.settled)
                _copy(connection, past)
            connection.execute(update(TARGETS).where(TARGETS.c.name == target.name).values(named_s=now))
            wanted = case((NOTICES.c.kind.in_(target.kinds), None), else_=literal(now))
            _copy(connection, select(NOTICES.c.id, name, literal(0), literal(now), wanted).where(lacks))
        connection.execute(update(NOTICES).where(~NOTICES.c.settled).values(settled=True))


def _lacks(target: str) -> ColumnElement[bool]:
    return ~exists().where(DELIVERIES.c.notice == NOTICES.c.id, DELIVERIES.c.target == target)


def _copy(connection: Connection, rows: Any) -> None:
    columns = ["notice", "target", "attempts", "next_try_s", "delivered_s"]
    connection.execute(insert_new(connection, DELIVERIES).from_select(columns, rows).on_conflict_do_nothing())


@dataclass(frozen=True)
class _Claim:
    """A notice that this process alone sends to the target, until its lease ends."""

    target: Target
    notice: Notice
    attempt: int


def _send_all(place: Database, targets: Sequence[Target], now: float, patience_s: float) -> tuple[int, int]:
    """Send until nothing is due, a target fails, or the patience ends; return how many were sent, how many failed.

    Threads send and the database is written to here alone: a thread that hangs is left behind and changes nothing.
    """
    answers: SimpleQueue[tuple[_Claim, str | None]] = SimpleQueue()
    running: dict[str, _Claim] = {}

    def start(claim: _Claim | None) -> None:
        left = until - time.monotonic()
        if claim and left > 0:
            running[claim.target.name] = claim
            threading.Thread(target=_send, args=(claim, left, answers), daemon=True).start()

    sent = failed = 0
    first = [claim for target in targets if (claim := _claim(place, target, now))]
    for name in {name for claim in first for name in claim.target.imports}:
        with suppress(ImportError):  # `send` says it
            import_module(name)
    until = time.monotonic() + patience_s
    for claim in first:
        start(claim)
    while running:
        try:
            claim, error = answers.get(timeout=max(until + GRACE_S - time.monotonic(), 0.01))
        except Empty:
            break
        del running[claim.target.name]
        if error is None:
            _note_delivered(place, claim)
            sent += 1
            start(_claim(place, claim.target, now) if time.monotonic() < until else None)
        else:
            _note_failure(place, claim, error, now)
            failed += 1
    for claim in running.values():
        _note_failure(place, claim, f"did not answer within {patience_s:.0f} s", now)
    return sent, failed + len(running)


def _send(claim: _Claim, timeout_s: float, answers: SimpleQueue[tuple[_Claim, str | None]]) -> None:
    try:
        claim.target.send(claim.notice, timeout_s)
    except Exception as error:  # whatever a target's library raises must not end the command, which has done its work
        answers.put((claim, one_line(str(error)) or type(error).__name__))
    else:
        answers.put((claim, None))


def _claim(place: Database, target: Target, now: float) -> _Claim | None:
    """Hold the next notice that is due: the one tried least, then the oldest, so that none blocks the others."""
    due = and_(DELIVERIES.c.target == target.name, DELIVERIES.c.delivered_s.is_(None), DELIVERIES.c.next_try_s <= now)
    query = (
        select(NOTICES, DELIVERIES.c.attempts)
        .join(DELIVERIES)
        .where(due)
        .order_by(DELIVERIES.c.attempts, NOTICES.c.added_s, NOTICES.c.number)
        .limit(20)  # others may claim the first ones meanwhile
    )
    for row in _ask(place, query):
        held = (
            update(DELIVERIES)
            .where(due, DELIVERIES.c.notice == row.id, DELIVERIES.c.attempts == row.attempts)
            .values(attempts=row.attempts + 1, next_try_s=now + LEASE_S)
        )
        with place.writing() as connection:
            if connection.execute(held).rowcount:
                notice = Notice(row.id, row.model, row.number, row.kind, row.time, json.loads(row.payload))
                return _Claim(target, notice, row.attempts + 1)
    return None


def _of(claim: _Claim) -> ColumnElement[bool]:
    return and_(DELIVERIES.c.notice == claim.notice.id, DELIVERIES.c.target == claim.target.name)


def _note_delivered(place: Database, claim: _Claim) -> None:
    with place.writing() as connection:
        connection.execute(update(DELIVERIES).where(_of(claim)).values(delivered_s=time.time(), last_error=None))


def _note_failure(place: Database, claim: _Claim, error: str, now: float) -> None:
    """Try the notice again later, and no other of this target before: it would cost each command the same wait."""
    again = now + min(FIRST_RETRY_S * 2.0 ** min(claim.attempt - 1, 30), LONGEST_RETRY_S)
    waits = update(DELIVERIES).where(DELIVERIES.c.target == claim.target.name, DELIVERIES.c.delivered_s.is_(None))
    failure = waits.where(_of(claim), DELIVERIES.c.attempts == claim.attempt)
    others = waits.where(DELIVERIES.c.next_try_s < again)
    with place.writing() as connection:
        connection.execute(failure.values(next_try_s=again, last_error=error))
        connection.execute(others.values(next_try_s=again))


def _state(place: Database, targets: Sequence[Target]) -> Delivered:
    """Return how many notices wait for any of the targets, and the error of the one tried last."""
    waiting = and_(DELIVERIES.c.delivered_s.is_(None), DELIVERIES.c.target.in_([target.name for target in targets]))
    latest = (
        select(DELIVERIES.c.target, DELIVERIES.c.last_error)
        .where(waiting, DELIVERIES.c.last_error.is_not(None))
        .order_by(DELIVERIES.c.next_try_s.desc())
    )
    count = sum(count for (count,) in _ask(place, select(func.count(DELIVERIES.c.notice.distinct())).where(waiting)))
    error = next((f"{target}: {why}" for target, why in _ask(place, latest.limit(1))), None)
    return Delivered(waiting=count, last_error=error)


def _forget(place: Database, now: float) -> None:
    """Delete notices of 30 days ago that wait for no target, and targets that no settings named for as long.

    A target that was named since has a delivery of every notice that there was then.
    """
    old = now - KEPT_S
    unnamed = select(TARGETS.c.name).where(TARGETS.c.named_s < old)
    waits = exists().where(DELIVERIES.c.notice == NOTICES.c.id, DELIVERIES.c.delivered_s.is_(None))
    done = select(NOTICES.c.id).where(NOTICES.c.added_s < old, NOTICES.c.settled, ~waits)
    if not (_ask(place, unnamed.limit(1)) or _ask(place, done.limit(1))):
        return
    with place.writing() as connection:
        if names := list(connection.execute(unnamed).scalars()):
            connection.execute(delete(DELIVERIES).where(DELIVERIES.c.target.in_(names)))
            connection.execute(delete(TARGETS).where(TARGETS.c.name.in_(names)))
        if ids := list(connection.execute(done).scalars()):
            connection.execute(delete(DELIVERIES).where(DELIVERIES.c.notice.in_(ids)))
            connection.execute(delete(NOTICES).where(NOTICES.c.id.in_(ids)))
