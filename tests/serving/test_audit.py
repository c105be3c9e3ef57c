"""The audit log: every request has its row, no request waits for it, and no row is ever changed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from databases import postgresql_server
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DatabaseError

from segmill.serving.audit import AuditLog, AuditRow, audit_log

ROW = AuditRow(
    request="r1", key="0a1b", route="/v1/segment", version="3", status=200, images=1, bytes_in=10, bytes_out=20,
    milliseconds=7,
)  # fmt: skip


def test_rows_are_there_when_the_log_has_ended_and_cannot_be_changed(url: str) -> None:
    with audit_log(url) as log:
        log.add(ROW)
        log.add(AuditRow(**{**ROW.__dict__, "request": "r2", "status": 429}))
    newest = log.last(2)
    assert [row["request"] for row in newest] == ["r2", "r1"]
    assert newest[1]["time"] and newest[1]["bytes_out"] == 20 and log.lost == 0
    engine = create_engine(url)
    for change in ("UPDATE api_audit SET status = 200", "DELETE FROM api_audit"):
        with pytest.raises(DatabaseError, match="stay as they are"), engine.begin() as connection:
            connection.execute(text(change))
    engine.dispose()
    assert log.last(2) == newest


def test_a_second_replica_adds_to_the_same_log(url: str) -> None:
    with audit_log(url) as one, audit_log(url) as other:
        for number in range(50):
            (one, other)[number % 2].add(AuditRow(**{**ROW.__dict__, "request": f"both {number}"}))
    assert {row["request"] for row in one.last(50)} == {f"both {number}" for number in range(50)}


def test_an_empty_log_has_no_rows(tmp_path: Path) -> None:
    with audit_log(f"sqlite:///{tmp_path / 'ledger.db'}") as log:
        assert log.last(10) == []


@pytest.mark.skipif(shutil.which("initdb") is None, reason="there is no PostgreSQL here")
def test_rows_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmill.serving.audit.WRITE_EVERY_S", 0.05)
    with postgresql_server() as server, audit_log(server.url) as log:
        log.add(ROW)
        time.sleep(0.5)
        server.kill()
        began = time.monotonic()
        for number in range(1000):
            log.add(AuditRow(**{**ROW.__dict__, "request": f"away {number}"}))
        assert time.monotonic() - began < 1.0
        time.sleep(0.5)
        server.start()
        until = time.monotonic() + 20
        while len(log.last(2000)) < 1001:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert log.lost == 0


def test_rows_wait_for_a_database_that_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("segmill.serving.audit.WRITE_EVERY_S", 0.05)
    file = tmp_path / "ledger.db"
    file.write_bytes(b"no database" * 100)
    with caplog.at_level("INFO", "segmill.serving"), audit_log(f"sqlite:///{file}") as log:
        log.add(ROW)
        time.sleep(0.5)
        file.unlink()
        until = time.monotonic() + 10
        while not log.last(1):
            assert time.monotonic() < until
            time.sleep(0.05)
    (said,) = [one.message for one in caplog.records if "audit log is not written" in one.message]
    assert "is not a database" in said and log.lost == 0


def test_what_is_too_much_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmill.serving.audit.MOST_WAITING", 3)
    log = AuditLog(f"sqlite:///{tmp_path / 'ledger.db'}")  # nobody writes
    for _ in range(5):
        log.add(ROW)
    assert log.lost == 2
