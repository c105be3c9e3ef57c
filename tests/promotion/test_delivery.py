"""Notices are sent at least once, by any of several processes, in spite of targets and senders that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from postings import HANGS_S, SECRET, Endpoint, a_row, endpoint, free_port, is_signed
from sqlalchemy import create_engine, func, select

from segmill.notify_params import EVENTS
from segmill.promotion.delivery import KEPT_S, LEASE_S, LONGEST_RETRY_S, Delivered, Target, deliver
from segmill.promotion.outbox import DELIVERIES, METADATA, NOTICES, TARGETS, Notice, add
from segmill.promotion.rows import LedgerRow
from segmill.promotion.webhooks import webhook

ALL = frozenset(EVENTS)
DAY_S = 24 * 3600.0


@pytest.fixture
def url(url: str) -> str:
    """Return the address of a ledger's database with an empty outbox."""
    engine = create_engine(url)
    METADATA.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def append(url: str, *rows: LedgerRow) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for row in rows:
            add(connection, row)
    engine.dispose()


def count(url: str, table: object) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]
    engine.dispose()
    return found


def hook(place: Endpoint | str, kinds: frozenset[str] = ALL) -> Target:
    return webhook(place if isinstance(place, str) else place.url, "HOOK_SECRET", kinds)


class Inbox:
    """A target in memory that keeps what it is sent, and fails while ``broken``."""

    def __init__(self, name: str = "inbox", kinds: frozenset[str] = ALL) -> None:
        self.notices: list[Notice] = []
        self.broken: Callable[[Notice], bool] = lambda notice: False
        self.target = Target(name, kinds, self._take)

    def _take(self, notice: Notice, timeout_s: float) -> None:
        if self.broken(notice):
            raise ConnectionError("the inbox\nis broken")
        self.notices.append(notice)

    @property
    def numbers(self) -> list[int]:
        return [notice.number for notice in self.notices]


def test_an_endpoint_that_fails_at_first_gets_the_notice_in_the_end(url: str) -> None:
    """It answers 500, then nobody listens there, then it does not answer, then it takes it."""
    append(url, a_row())
    port, now = free_port(), time.time()
    with endpoint(port) as there:
        there.answers = [500]
        target = hook(there)
        failed = deliver(url, [target], now=now)
        assert failed == Delivered(failed=1, waiting=1, last_error=f"webhook {there.url}: answered 500")
        assert deliver(url, [target], now=now + 9.9).failed == 0, "it waits"
        first = there.postings
    refused = deliver(url, [target], now=now + 10)
    assert refused.failed == 1 and "does not answer ([Errno 111] Connection refused)" in str(refused.last_error)
    with endpoint(port) as there:
        there.answers = ["hang"]
        assert deliver(url, [target], now=now + 29).failed == 0, "it waits twice as long"
        began = time.monotonic()
        hung = deliver(url, [target], now=now + 30, patience_s=0.5)
        assert time.monotonic() - began < HANGS_S and hung.failed == 1 and hung.waiting == 1
        assert deliver(url, [target], now=now + 69).failed == 0
        assert deliver(url, [target], now=now + 70) == Delivered(sent=1)
        assert deliver(url, [target], now=now + DAY_S) == Delivered()
        postings = [*first, *there.postings]
    assert [is_signed(posting) for posting in postings] == [True, True, True]
    assert len({posting.id for posting in postings}) == 1 and len({posting.body for posting in postings}) == 1


def test_pauses_double_up_to_an_hour(url: str) -> None:
    append(url, a_row())
    inbox, now = Inbox(), 1e9
    inbox.broken = lambda notice: True
    assert deliver(url, [inbox.target], now=now).failed == 1
    for pause in (10, 20, 40, 80, 160, 320, 640, 1280, 2560, LONGEST_RETRY_S, LONGEST_RETRY_S):
        assert deliver(url, [inbox.target], now=now + pause - 0.1).failed == 0
        now += pause
        assert deliver(url, [inbox.target], now=now).failed == 1


def _deliver_at_a_signal(url: str, address: str, go: str) -> None:
    while not Path(go).exists():
        time.sleep(0.001)
    for _ in range(3):
        deliver(url, [hook(address)])


@pytest.mark.slow
def test_several_processes_send_each_notice_once(url: str, tmp_path: Path) -> None:
    append(url, *[a_row(number=number) for number in range(1, 31)])
    go = tmp_path / "go"
    spawn = multiprocessing.get_context("spawn")
    with endpoint() as there:
        senders = [spawn.Process(target=_deliver_at_a_signal, args=(url, there.url, str(go))) for _ in range(3)]
        for sender in senders:
            sender.start()
        time.sleep(2)
        go.touch()
        for sender in senders:
            sender.join()
            assert sender.exitcode == 0
        assert deliver(url, [hook(there)]) == Delivered()
        assert sorted(posting.id for posting in there.postings) == sorted(
            f"msg_{a_row(number=number).hash[:40]}" for number in range(1, 31)
        )


def _die_between_sending_and_noting(url: str, address: str, now: float) -> None:
    real = hook(address)

    def send(notice: Notice, timeout_s: float) -> None:
        real.send(notice, timeout_s)
        os.kill(os.getpid(), signal.SIGKILL)

    deliver(url, [Target(real.name, real.kinds, send)], now=now)


@pytest.mark.slow
def test_a_sender_killed_before_it_notes_that_it_sent_sends_again(url: str) -> None:
    append(url, a_row())
    now = time.time()
    with endpoint() as there:
        killed = multiprocessing.get_context("spawn").Process(
            target=_die_between_sending_and_noting, args=(url, there.url, now)
        )
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL and len(there.postings) == 1
        assert deliver(url, [hook(there)], now=now + LEASE_S - 1) == Delivered(waiting=1), "the lease holds"
        assert deliver(url, [hook(there)], now=now + LEASE_S) == Delivered(sent=1)
        assert len(there.postings) == 2 and len({posting.id for posting in there.postings}) == 1
        assert all(map(is_signed, there.postings))


def test_a_target_added_later_gets_only_notices_from_then_on(url: str) -> None:
    first, later = Inbox("first"), Inbox("later")
    append(url, a_row(number=1))
    assert deliver(url, [first.target]).sent == 1
    append(url, a_row(number=2))
    assert deliver(url, [first.target, later.target]).sent == 2
    assert deliver(url, [first.target, later.target]) == Delivered()
    assert first.numbers == [1, 2] and later.numbers == [2]


def test_settings_without_targets_leave_nothing_for_the_first_target(url: str) -> None:
    append(url, a_row(number=1))
    assert deliver(url, []) == Delivered()
    inbox = Inbox()
    append(url, a_row(number=2))
    deliver(url, [inbox.target])
    assert inbox.numbers == [2]


def test_a_workspace_that_does_not_name_a_target_takes_nothing_from_it(url: str) -> None:
    """Two workspaces share a ledger, and the one without targets looks first."""
    inbox = Inbox()
    deliver(url, [inbox.target])
    append(url, a_row(number=1))
    deliver(url, [])
    assert deliver(url, [inbox.target]).sent == 1 and inbox.numbers == [1]


def test_a_target_gets_the_events_that_it_wants_and_none_of_the_past_when_it_wants_more(url: str) -> None:
    rows = [a_row(number=1), a_row("refuse", number=2, champion="1"), a_row("rollback", number=3)]
    inbox = Inbox(kinds=frozenset({"rolled_back"}))
    append(url, *rows)
    deliver(url, [inbox.target])
    more = Target(inbox.target.name, ALL, inbox.target.send)
    append(url, a_row("refuse", number=4, champion="1"))
    assert deliver(url, [more]).sent == 1
    assert inbox.numbers == [3, 4]


def test_a_notice_that_is_never_taken_does_not_keep_others_back(url: str) -> None:
    append(url, *[a_row(number=number) for number in (1, 2, 3)])
    inbox, now = Inbox(), 1e9
    inbox.broken = lambda notice: notice.number == 1
    first = deliver(url, [inbox.target], now=now)
    assert first == Delivered(failed=1, waiting=3, last_error="inbox: the inbox is broken")
    second = deliver(url, [inbox.target], now=now + 10)
    assert inbox.numbers == [2, 3] and second.waiting == 1
    append(url, a_row(number=4))
    assert deliver(url, [inbox.target], now=now + 11).sent == 1


def test_a_target_that_is_down_costs_one_attempt_and_others_none(url: str) -> None:
    append(url, *[a_row(number=number) for number in range(1, 6)])
    inbox = Inbox()
    with endpoint() as there:
        there.answers = ["hang"] * 5
        began = time.monotonic()
        delivered = deliver(url, [hook(there), inbox.target], patience_s=0.5)
        assert time.monotonic() - began < HANGS_S
        assert delivered.failed == 1 and delivered.sent == 5 and delivered.waiting == 5
        assert len(there.postings) == 1
        assert "answer" in str(delivered.last_error) or "timed out" in str(delivered.last_error)
        assert deliver(url, [hook(there), inbox.target], patience_s=5).failed == 0
        assert len(there.postings) == 1, "it is not asked again"
    assert inbox.numbers == [1, 2, 3, 4, 5]


def test_what_a_target_needs_is_imported_by_the_caller_and_takes_nothing_of_the_patience(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ended while a thread imported Prefect was aborted: the import took longer than the patience."""
    append(url, a_row())
    (tmp_path / "takes_long.py").write_text("import threading, time\ntime.sleep(0.6)\nby = threading.current_thread()")
    monkeypatch.syspath_prepend(tmp_path)
    inbox = Inbox()
    target = replace(inbox.target, imports=("takes_long", "is_not_there"))
    assert deliver(url, [target], patience_s=0.3) == Delivered(sent=1)
    assert sys.modules.pop("takes_long").by is threading.main_thread()


def test_what_all_targets_have_is_deleted_after_30_days(url: str) -> None:
    inbox, down, now = Inbox("inbox"), Inbox("down"), time.time()
    down.broken = lambda notice: True
    append(url, a_row(number=1))
    deliver(url, [inbox.target, down.target], now=now)
    deliver(url, [inbox.target, down.target], now=now + KEPT_S - 60)
    assert count(url, NOTICES) == 1
    deliver(url, [inbox.target, down.target], now=now + KEPT_S + 60)
    assert count(url, NOTICES) == 1, "one target has not got it"
    down.broken = lambda notice: False
    deliver(url, [inbox.target, down.target], now=now + KEPT_S + DAY_S)
    assert (count(url, NOTICES), count(url, DELIVERIES), count(url, TARGETS)) == (0, 0, 2)


def test_a_target_that_no_settings_name_for_30_days_is_forgotten_with_what_waited_for_it(url: str) -> None:
    gone, inbox, now = Inbox("gone"), Inbox(), time.time()
    gone.broken = lambda notice: True
    append(url, a_row(number=1))
    deliver(url, [gone.target, inbox.target], now=now)
    for day in range(1, 33):
        deliver(url, [inbox.target], now=now + day * DAY_S)
    assert (count(url, NOTICES), count(url, DELIVERIES), count(url, TARGETS)) == (0, 0, 1)


def test_a_database_without_an_outbox_or_none_at_all_has_nothing_to_send(tmp_path: Path) -> None:
    inbox = Inbox()
    assert deliver(f"sqlite:///{tmp_path}/ledger.db", [inbox.target]) == Delivered()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ledger.db").touch()
    assert deliver(f"sqlite:///{tmp_path}/ledger.db", [inbox.target]) == Delivered()


def test_a_database_out_of_reach_is_a_sentence_without_its_password(tmp_path: Path) -> None:
    nowhere = deliver(f"postgresql+psycopg://user:w0rd@127.0.0.1:{free_port()}/ledger", [Inbox().target])
    assert "does not answer" in str(nowhere.last_error) and "w0rd" not in str(nowhere.last_error)
    (tmp_path / "ledger.db").write_text("this is no database, but a text of some length" * 50)
    assert "cannot be used" in str(deliver(f"sqlite:///{tmp_path}/ledger.db", [Inbox().target]).last_error)
