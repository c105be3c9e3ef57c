"""Senders that are killed at any moment (SIGKILL) lose no notice, and double at most the one that each was sending."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from postings import SECRET, a_row, endpoint, is_signed

from segmill.notify_params import EVENTS
from segmill.promotion.database import Database
from segmill.promotion.delivery import LEASE_S, Delivered, deliver
from segmill.promotion.outbox import add
from segmill.promotion.webhooks import webhook

NOTICES, ROUNDS, SENDERS = 80, 4, 2


def send(url: str, address: str, ready: str) -> None:
    target = webhook(address, "HOOK_SECRET", frozenset(EVENTS))
    Path(ready).touch()
    while True:
        deliver(url, [target])


@pytest.mark.slow
@pytest.mark.fault
def test_no_notice_is_lost_where_senders_are_killed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    url, rng = f"sqlite:///{tmp_path}/ledger.db", random.Random(0)
    rows = [a_row(number=number) for number in range(1, NOTICES + 1)]
    with Database(url).writing() as connection:
        for row in rows:
            add(connection, row)
    spawn = multiprocessing.get_context("spawn")
    with endpoint() as there:
        for number in range(ROUNDS):
            ready = [tmp_path / f"ready-{number}-{sender}" for sender in range(SENDERS)]
            senders = [spawn.Process(target=send, args=(url, there.url, str(file))) for file in ready]
            for sender in senders:
                sender.start()
            while not all(file.exists() for file in ready):
                time.sleep(0.005)
            for sender in senders:
                time.sleep(rng.uniform(0.02, 0.25))
                sender.kill()
                sender.join()
        sent_by_the_killed = len(there.postings)
        assert 0 < sent_by_the_killed < NOTICES, "they were killed in the middle of it"
        target = webhook(there.url, "HOOK_SECRET", frozenset(EVENTS))
        rest = deliver(url, [target], now=time.time() + LEASE_S, patience_s=120)
        assert rest.waiting == 0 and rest.failed == 0
        assert deliver(url, [target], now=time.time() + LEASE_S) == Delivered()
        assert {posting.id for posting in there.postings} == {f"msg_{row.hash[:40]}" for row in rows}
        assert len(there.postings) <= NOTICES + ROUNDS * SENDERS
        assert all(map(is_signed, there.postings))
