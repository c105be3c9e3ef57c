"""Which version serves: by the verified ledger alone, and never by an older state of it than was seen."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from ledgers import MODEL, key_of, ledger_at, record, write_earlier

from segmill.promotion.ledger import LedgerError
from segmill.serving.head import read_head


def test_the_last_row_says_who_serves(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.db")
    assert read_head(ledger, MODEL).version is None
    record(ledger, "promote", "1", decision="PASS")
    record(ledger, "promote", "2", decision="PASS")
    assert read_head(ledger, MODEL).version == "2"
    record(ledger, "refuse", "3", decision="FAIL")
    head = read_head(ledger, MODEL)
    assert (head.version, head.number, head.since) == ("2", 3, 2)
    record(ledger, "rollback", "1")
    back = read_head(ledger, MODEL, last=head)
    assert (back.version, back.number, back.since) == ("1", 4, 4), "it serves anew"


def test_a_service_that_began_before_the_first_promotion_sees_it(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.db")
    none = read_head(ledger, MODEL)
    assert read_head(ledger, MODEL, last=none).version is None
    record(ledger, "promote", "1", decision="PASS")
    assert read_head(ledger, MODEL, last=none).version == "1"


def test_rows_that_were_edited_say_nothing(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.db")
    record(ledger, "promote", "1", decision="PASS")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        (table,) = (
            name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE sql LIKE '%previous_hash%'")
        )
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute(f'UPDATE {table} SET payload = replace(payload, \'"champion":"1"\', \'"champion":"7"\')')
    with pytest.raises(LedgerError, match="its content was changed after it was written"):
        read_head(ledger, MODEL)


def test_rows_of_a_key_that_is_not_trusted_say_nothing(tmp_path: Path) -> None:
    record(ledger_at(tmp_path / "ledger.db", key_of("mallory")), "promote", "1", decision="PASS")
    with pytest.raises(LedgerError, match="not to be believed"):
        read_head(ledger_at(tmp_path / "ledger.db"), MODEL)


def test_an_older_copy_of_the_database_is_refused_by_who_saw_a_newer_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = ledger_at(path)
    record(ledger, "promote", "1", decision="PASS")
    shutil.copy(path, tmp_path / "old.db")
    record(ledger, "promote", "2", decision="PASS")
    seen = read_head(ledger, MODEL)
    shutil.copy(tmp_path / "old.db", path)
    old = ledger_at(path)
    assert read_head(old, MODEL).version == "1", "whoever comes new can't know"
    with pytest.raises(LedgerError, match="this service knows row 2, and the database ends with row 1"):
        read_head(old, MODEL, last=seen)


def test_rows_of_a_release_that_signed_nothing_promote_nothing(tmp_path: Path) -> None:
    write_earlier(tmp_path / "ledger.db", ("promote", "1", None, "PASS"))
    with pytest.raises(LedgerError, match="no row of segmill-brain is signed yet"):
        read_head(ledger_at(tmp_path / "ledger.db"), MODEL)
