"""The lease: one run per model; a dead holder loses it, and one that comes back can record nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

import pytest
from ledgers import MODEL, ledger_at, record
from sqlalchemy import create_engine, text
from wrong_clock import wrong_clock

from segmill.promotion.lease import LeaseHeld, LeaseLost, Timing, holds, leased, refuse_lost_of, who_holds
from segmill.promotion.ledger_url import URL_VARIABLE

QUICK = Timing(duration_s=1.0, renew_s=0.2, look_s=0.05)
HOLDS = """
import sys, time
from ledgers import MODEL, ledger_at, record
from segmill.promotion.lease import LeaseLost, Timing, leased
with leased(sys.argv[1], MODEL, "night 1", timing=Timing(1.0, 0.2, 0.05)) as lease:
    print("holds", flush=True)
    sys.stdin.readline()
    try:
        record(ledger_at(sys.argv[1]), "promote", "1")
    except LeaseLost as lost:
        print(lost, flush=True)
"""


def change(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def begin_holder(url: str, **variables: str) -> subprocess.Popen[str]:
    """Start a process that holds the lease, and records a row once it is sent a line."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own
    )
    assert process.stdout and process.stdout.readline() == "holds\n"
    return process


def test_one_holds_it_and_the_others_learn_who_and_since_when(url: str) -> None:
    assert who_holds(url, MODEL) is None
    with leased(url, MODEL, "night 1") as lease:
        holder = who_holds(url, MODEL)
        assert lease.number == 1 and holder and not holder.expired
        assert (holder.what, holder.pid, holder.model) == ("night 1", os.getpid(), MODEL) and holder.host
        with (
            pytest.raises(
                LeaseHeld, match=rf"segmill-brain is being retrained by night 1 on .* \(process {os.getpid()}"
            ),
            leased(url, MODEL, "night 2"),
        ):
            pass
        with leased(url, "segmill-street", "another model"):
            assert who_holds(url, "segmill-street")
    assert who_holds(url, MODEL) is None
    with leased(url, MODEL, "night 3") as lease:
        assert lease.number == 2, "a fencing number is never given twice"


def test_who_waits_gets_it_when_the_holder_is_done(url: str) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool, ExitStack() as first:
        first.enter_context(leased(url, MODEL, "night 1", timing=QUICK))

        def second() -> int:
            with leased(url, MODEL, "night 2", wait_s=20, say=said.append, timing=QUICK) as lease:
                return lease.number

        waiting = pool.submit(second)
        time.sleep(2 * QUICK.duration_s)  # it is renewed, so a living holder keeps it for longer than it lasts
        assert not waiting.done() and len(said) == 1 and said[0].startswith("waiting for night 1 on ")
        first.close()
        assert waiting.result(timeout=10) == 2


def test_of_many_at_once_one_holds_it(url: str) -> None:
    holding: list[int] = []

    def hold(number: int) -> bool:
        with suppress(LeaseHeld), leased(url, MODEL, f"run {number}"):
            holding.append(number)
            assert len(holding) == 1
            time.sleep(0.5)
            holding.remove(number)
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(hold, range(8))) >= 1


def test_a_killed_holder_on_this_machine_loses_it_at_once(url: str) -> None:
    process = begin_holder(url)
    process.kill()
    process.wait()
    assert who_holds(url, MODEL) is None
    with leased(url, MODEL, "night 2") as lease:
        assert (lease.number, lease.died) == (2, "night 1")
    with leased(url, MODEL, "night 3") as lease:
        assert (lease.number, lease.died) == (3, "")


def test_a_dead_holder_on_another_machine_loses_it_when_it_expires(url: str) -> None:
    process = begin_holder(url)
    change(url, "UPDATE ledger_leases SET process = 'another 1 1'")
    process.kill()
    process.wait()
    with pytest.raises(LeaseHeld, match="night 1 on another"), leased(url, MODEL, "night 2", timing=QUICK):
        pass
    holder = who_holds(url, MODEL)
    assert holder and not holder.expired
    time.sleep(QUICK.duration_s)
    holder = who_holds(url, MODEL)
    assert holder and holder.expired and "not heard of for too long" in str(holder)
    with leased(url, MODEL, "night 2", timing=QUICK) as lease:
        assert lease.number == 2


def test_a_holder_that_comes_back_records_nothing(url: str) -> None:
    """A process that was stopped for longer than the lease lasts, as a virtual machine that is moved is."""
    process = begin_holder(url)
    os.kill(process.pid, signal.SIGSTOP)
    with leased(url, MODEL, "night 2", wait_s=20, timing=QUICK) as lease:
        assert lease.number == 2
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate("record\n", timeout=60)
        assert "another run of segmill-brain took its lease over from night 1 (number 1)" in said
        assert process.returncode == 1, "LeaseLost at the end of the block"
        assert ledger_at(url).rows(MODEL) == []
        record(ledger_at(url), "promote", "2")
    assert [row.version for row in ledger_at(url).rows(MODEL)] == ["2"]


def test_the_holder_hears_that_it_lost(url: str) -> None:
    heard: list[bool] = []
    with (
        pytest.raises(LeaseLost),
        leased(url, MODEL, "night 1", timing=QUICK, on_lost=lambda: heard.append(True)) as lease,
    ):
        change(url, "UPDATE ledger_leases SET number = 7, token = 'another', expires_s = expires_s + 1000")
        until = time.monotonic() + 10
        while not heard and time.monotonic() < until:
            time.sleep(0.05)
        assert lease.lost
    holder = who_holds(url, MODEL)
    assert heard == [True] and holder, "it does not give back what is another's"


def test_who_lost_it_without_having_heard_so_is_refused_before_it_registers(url: str) -> None:
    slow = Timing(duration_s=60.0, renew_s=30.0, look_s=0.05)
    with pytest.raises(LeaseLost), leased(url, MODEL, "night 1", timing=slow) as lease:
        refuse_lost_of(MODEL)
        change(url, "UPDATE ledger_leases SET number = 7, token = 'another'")
        assert not lease.lost
        refuse_lost_of("segmill-street")
        refuse_lost_of(MODEL)
        pytest.fail("it would register")


def test_what_a_complete_run_covered_is_known_to_the_next(url: str) -> None:
    before = time.time()
    with leased(url, MODEL, "night 1") as lease:
        assert lease.before is None
        lease.complete("deployment 1")
    with suppress(ZeroDivisionError), leased(url, MODEL, "night 2") as lease:
        assert lease.before and (lease.before.by, lease.before.work) == ("night 1", "deployment 1")
        assert abs(lease.before.began_s - before) < 30
        raise ZeroDivisionError  # it covers nothing
    with leased(url, MODEL, "night 3") as lease:
        assert lease.before and lease.before.by == "night 1"


def test_a_database_that_is_away_for_a_while_costs_nobody_the_lease(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with leased(f"sqlite:///{path}", MODEL, "night 1", timing=QUICK) as lease:
        path.rename(tmp_path / "away")
        path.mkdir()
        time.sleep(2 * QUICK.duration_s)
        path.rmdir()
        (tmp_path / "away").rename(path)
        time.sleep(3 * QUICK.renew_s)
        assert not lease.lost
        holder = who_holds(f"sqlite:///{path}", MODEL)
        assert holder and not holder.expired


def test_a_clock_that_is_a_day_ahead_takes_nothing_from_a_living_holder(tmp_path: Path) -> None:
    """SQLite has only the clock of who asks: one that is ahead sees every lease expired, and watches it renewed."""
    path = tmp_path / "ledger.db"
    with leased(f"sqlite:///{path}", MODEL, "night 1", timing=QUICK):
        with sqlite3.connect(path) as connection:  # what the other's clock makes of it
            connection.execute(
                "CREATE TRIGGER ahead AFTER UPDATE OF renewals ON ledger_leases BEGIN "
                "UPDATE ledger_leases SET expires_s = expires_s - 86400; END"
            )
        connection.close()
        time.sleep(2 * QUICK.renew_s)
        assert (holder := who_holds(f"sqlite:///{path}", MODEL)) and holder.expired
        began = time.monotonic()
        with (
            pytest.raises(LeaseHeld, match=r"night 1 on .* since [-\d]+ [:+\d]+; wait"),
            leased(f"sqlite:///{path}", MODEL, "night 2", timing=QUICK),
        ):
            pass
        assert time.monotonic() - began < 5
        with (
            pytest.raises(LeaseHeld),
            leased(f"sqlite:///{path}", MODEL, "night 2", wait_s=3 * QUICK.duration_s, timing=QUICK),
        ):
            pass


@pytest.mark.parametrize("days", [2, -2])
def test_a_holder_with_a_wrong_clock_keeps_it_alive_and_loses_it_dead(tmp_path: Path, days: int) -> None:
    """Also a clock that is two days ahead, by which the lease would last for so long."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    process = begin_holder(url, **wrong_clock(days))
    change(url, "UPDATE ledger_leases SET process = 'another 1 1'")
    holder = who_holds(url, MODEL)
    assert holder and holder.expired
    assert abs(datetime.fromisoformat(holder.since).timestamp() - time.time() - days * 86400) < 600
    with pytest.raises(LeaseHeld, match="night 1 on another"), leased(url, MODEL, "night 2", timing=QUICK):
        pass
    process.kill()
    process.wait()
    began = time.monotonic()
    with leased(url, MODEL, "night 2", timing=QUICK) as lease:
        assert lease.number == 2 and time.monotonic() - began < 5
    assert who_holds(url, MODEL) is None


def test_the_ledger_without_a_lease_is_as_before(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with leased(url, MODEL, "night 1"):
        record(ledger_at(url), "promote", "1")
        record(ledger_at(url), "promote", "1", model="segmill-street")
    record(ledger_at(url), "rollback", "1")
    assert len(ledger_at(url).rows(MODEL)) == 2


def test_a_process_knows_what_it_holds(tmp_path: Path) -> None:
    with leased(f"sqlite:///{tmp_path / 'ledger.db'}", MODEL, "night 1"):
        assert holds(MODEL) and not holds("segmill-street")
    assert not holds(MODEL)
