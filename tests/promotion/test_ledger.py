"""The ledger: what is written stays and is signed; of two who judged against one champion, one may write."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ledgers import ANNA, MODEL, key_of, ledger_at, record, trusting, write_earlier
from sqlalchemy import Connection, text

from segmill.errors import InfrastructureError, InputError
from segmill.promotion.ledger import Conflict, LedgerError, open_ledger
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.rows import Entry, LedgerRow, champion, waiting

PASSED = Entry(
    action="promote", version="1", decision="PASS", reasons=["It reaches the floor."], facts={"challenger_miou": 0.8}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def edit(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


def test_a_row_comes_back_as_it_was_written_with_who_when_and_who_serves(path: Path) -> None:
    ledger = ledger_at(path)
    row = ledger.append(ledger.begin(MODEL), PASSED)
    assert ledger.rows(MODEL) == [row] and row.verifiable
    assert (row.number, row.version, row.champion, row.previous, row.writer) == (1, "1", "1", None, 1)
    assert (row.decision, row.reasons, row.facts) == ("PASS", ["It reaches the floor."], {"challenger_miou": 0.8})
    assert (row.key_id, row.actor["user"]) == (ANNA.public.id, row.actor["user"]) and row.actor["host"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(row.time)).total_seconds()) < 60


def test_each_model_has_a_sequence_and_the_last_row_says_who_serves(path: Path) -> None:
    ledger = ledger_at(path)
    for action, version in [("promote", "1"), ("refuse", "2"), ("promote", "3"), ("rollback", "1"), ("overrule", "2")]:
        record(ledger, action, version)
    record(ledger, "promote", "7", model="segmill-street")
    rows = ledger.rows(MODEL)
    assert [(row.number, row.previous, row.champion) for row in rows] == [
        (1, None, "1"), (2, "1", "1"), (3, "1", "3"), (4, "3", "1"), (5, "1", "2"),
    ]  # fmt: skip
    assert [row.hash for row in rows[:-1]] == [row.previous_hash for row in rows[1:]]
    assert [row.number for row in ledger.rows(MODEL, limit=2)] == [4, 5]
    assert ledger.models() == [MODEL, "segmill-street"] and len(ledger.rows()) == 6
    assert champion(rows) == "2" and champion([]) is None
    assert ledger.verify(MODEL) == ledger.verify("segmill-street") == []


def test_an_absent_ledger_is_empty_and_reading_makes_none(path: Path) -> None:
    ledger = ledger_at(path)
    assert ledger.rows() == ledger.models() == ledger.verify(MODEL) == []
    assert ledger.position(MODEL).rows == () and not path.exists()


def test_whoever_began_before_another_ones_row_is_refused(path: Path) -> None:
    ledger = ledger_at(path)
    record(ledger, "promote", "1")
    late, early = ledger.begin(MODEL), ledger.begin(MODEL)
    row = ledger.append(late, Entry(action="promote", version="2"))
    with pytest.raises(Conflict, match=r"row 2 of segmill-brain was appended after .* row 1; judge again"):
        ledger.append(early, Entry(action="promote", version="3"))
    ledger.append(late.after(row), Entry(action="refuse", version="4"))
    assert [row.version for row in ledger.rows(MODEL)] == ["1", "2", "4"]


def test_a_writer_taken_for_dead_is_refused_though_it_names_the_right_head(path: Path) -> None:
    """Fencing: it may have been paused while others wrote, and nothing that it knows can be relied on."""
    ledger = ledger_at(path)
    dead = ledger.begin(MODEL)
    row = ledger.append(ledger.begin(MODEL), PASSED)
    with pytest.raises(Conflict, match=r"a later writer \(number 2\) has appended .* number 1 no longer may"):
        ledger.append(dead.after(row), Entry(action="promote", version="2"))
    assert len(ledger.rows(MODEL)) == 1


def test_of_many_at_once_one_gets_in(path: Path) -> None:
    ledger = ledger_at(path)
    writers = [ledger.begin(MODEL) for _ in range(8)]

    def promote(number: int) -> bool:
        try:
            ledger.append(writers[number], Entry(action="promote", version=str(number)))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(promote, range(8))) == 1
    assert len(ledger.rows(MODEL)) == 1 and ledger.verify(MODEL) == []


def test_an_entry_that_is_none_is_refused(path: Path) -> None:
    ledger = ledger_at(path)
    with pytest.raises(InputError, match="action promot is unknown to the ledger; did you mean 'promote'"):
        record(ledger, "promot", "1")
    with pytest.raises(InputError, match="an entry refuse never makes its version the champion"):
        record(ledger, "refuse", "1", serves=True)
    with pytest.raises(ValueError, match="Out of range float"):
        record(ledger, "promote", "1", facts={"gain": float("nan")})
    assert ledger.rows() == []


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            "UPDATE ledger_rows SET payload = replace(payload, 'PASS', 'FAIL') WHERE number = 2",
            "its content was changed",
        ),
        ("UPDATE ledger_rows SET signature = '' WHERE number = 2", "row 2 of .* nobody signed it"),
        ("UPDATE ledger_rows SET payload = 'x' WHERE number = 2", "row 2 of .* its content is not that of a row"),
        ("DELETE FROM ledger_rows WHERE number = 2", "row 3 of .* row 2 before it is missing"),
        ("DELETE FROM ledger_rows WHERE number = 3", "row 3 of .* is the last, and there the last is row 2"),
    ],
)
def test_nothing_is_decided_by_rows_that_were_changed(path: Path, damage: str, says: str) -> None:
    """Fault (f): an edited row was shown as genuine, and was judged against."""
    ledger = ledger_at(path)
    for version in "123":
        record(ledger, "promote", version, decision="PASS")
    writer = ledger.begin(MODEL)
    edit(path, damage)
    (first, *_) = ledger.verify(MODEL)
    with pytest.raises(LedgerError, match=rf"{says}.*; nothing is decided by the ledger at .*ledger\.db until"):
        ledger.begin(MODEL)
    if "number = 3" in damage:
        with pytest.raises((LedgerError, Conflict)):
            ledger.append(writer, Entry(action="promote", version="4"))
    else:
        row = next(row for row in ledger.rows(MODEL) if not row.verifiable)
        assert row.doubt and row.doubt in first


def test_rows_of_a_key_that_is_not_listed_are_shown_and_decide_nothing(path: Path) -> None:
    ledger_rows = [record(ledger_at(path), "promote", version) for version in "12"]
    stranger = open_ledger(f"sqlite:///{path}", trusted=trusting(), key=ANNA)
    assert [row.hash for row in stranger.rows(MODEL)] == [row.hash for row in ledger_rows]
    assert not any(row.verifiable for row in stranger.rows(MODEL))
    (finding,) = stranger.verify(MODEL)
    assert "rows 1 to 2 of segmill-brain are not to be believed" in finding and "trusted_keys does not list" in finding
    with pytest.raises(LedgerError, match="trusted_keys does not list"):
        stranger.begin(MODEL)


def test_nobody_appends_without_a_key_or_with_one_that_is_not_listed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SEGMILL_SIGNING_KEY", raising=False)
    keyless = open_ledger(f"sqlite:///{path}", trusted=trusting(ANNA))
    with pytest.raises(InputError, match=r"there is no signing key at .*segmill signing setup"):
        keyless.append(keyless.begin(MODEL), PASSED)
    foreign = open_ledger(f"sqlite:///{path}", trusted=trusting(ANNA), key=key_of("mallory"))
    with pytest.raises(InputError, match=r"trusted_keys does not list the key .* of whoever runs this"):
        foreign.append(foreign.begin(MODEL), PASSED)
    assert keyless.rows() == []


def test_what_is_written_in_the_transaction_is_there_with_the_row_or_not_at_all(path: Path) -> None:
    def notice(connection: Connection, row: LedgerRow) -> None:
        connection.execute(text("CREATE TABLE IF NOT EXISTS notices (number INTEGER)"))
        connection.execute(text("INSERT INTO notices VALUES (:number)"), {"number": row.number})
        if row.version == "2":
            raise KeyError("stopped between two writes")

    ledger = open_ledger(f"sqlite:///{path}", trusted=trusting(ANNA), key=ANNA, in_transaction=notice)
    record(ledger, "promote", "1")
    with pytest.raises(KeyError):
        record(ledger, "promote", "2")
    assert sqlite3.connect(path).execute("SELECT number FROM notices").fetchall() == [(1,)]
    assert [row.version for row in ledger.rows(MODEL)] == ["1"] and ledger.verify(MODEL) == []


def test_an_earlier_releases_ledger_is_shown_and_taken_over_with_the_first_row(path: Path) -> None:
    write_earlier(path, ("promote", "1", None, "PASS"), ("refuse", "2", "1", "FAIL"), ("rollback", "1", "3", None))
    write_earlier(path, ("promote", "9", None, "PASS"), model="segmill-street")
    ledger = ledger_at(path)
    before = ledger.rows(MODEL)
    assert [(row.action, row.champion, row.verifiable, row.taken_over) for row in before] == [
        ("promote", "1", False, True), ("refuse", "1", False, True), ("rollback", "1", False, True),
    ]  # fmt: skip
    row = record(ledger, "promote", "4", decision="PASS")
    after = ledger.rows(MODEL)
    assert (row.number, row.previous, after[-1]) == (4, "1", row)
    assert [(one.action, one.facts, one.time) for one in after[:3]] == [
        (one.action, one.facts, one.time) for one in before
    ]
    assert ledger.verify(MODEL) == [] and [one.taken_over for one in after] == [True, True, True, False]
    assert [one.version for one in ledger.rows("segmill-street")] == ["9"]
    record(ledger, "refuse", "5")
    assert len(ledger.rows(MODEL)) == 5

    edit(path, "UPDATE ledger_rows SET payload = replace(payload, 'FAIL', 'PASS') WHERE number = 2")
    assert "row 2 of segmill-brain is not to be believed: its content was changed" in ledger.verify(MODEL)[0]


def test_many_who_take_over_at_once_do_it_once(path: Path) -> None:
    write_earlier(path, ("promote", "1", None, "PASS"), ("promote", "2", "1", "PASS"))

    def refuse(version: int) -> int:
        try:
            return record(ledger_at(path), "refuse", str(version)).number
        except Conflict:
            return 0

    with ThreadPoolExecutor(8) as pool:
        numbers = [number for number in pool.map(refuse, range(8)) if number]
    rows = ledger_at(path).rows(MODEL)
    assert sorted(numbers) == list(range(3, 3 + len(numbers))) == [row.number for row in rows[2:]]
    assert [row.version for row in rows[:2]] == ["1", "2"] and ledger_at(path).verify(MODEL) == []


def test_rows_that_an_earlier_release_wrote_afterwards_are_found(path: Path) -> None:
    write_earlier(path, ("promote", "1", None, "PASS"))
    record(ledger_at(path), "promote", "2")
    write_earlier(path, ("promote", "3", "1", "PASS"))
    (finding,) = ledger_at(path).verify(MODEL)
    assert finding.startswith("an earlier release of segmill wrote 1 rows of segmill-brain into its own table")


def test_a_version_waits_until_it_is_approved_rejected_expired_or_superseded(path: Path) -> None:
    ledger = ledger_at(path)
    record(ledger, "promote", "1")
    record(ledger, "await", "2", facts={"expires": "2026-12-01T00:00:00+00:00"})
    record(ledger, "approve", "2", serves=False)
    found = waiting(ledger.rows(MODEL))
    assert found and (found.version, found.expires, len(found.approvals)) == ("2", "2026-12-01T00:00:00+00:00", 1)
    record(ledger, "refuse", "3")
    assert waiting(ledger.rows(MODEL)) == found
    record(ledger, "approve", "2", serves=True)
    assert waiting(ledger.rows(MODEL)) is None and champion(ledger.rows(MODEL)) == "2"
    record(ledger, "await", "4")
    record(ledger, "await", "5")
    newest = waiting(ledger.rows(MODEL))
    assert newest and newest.version == "5", "a newer PASS takes the place of one that waits"
    record(ledger, "reject", "5")
    assert waiting(ledger.rows(MODEL)) is None and champion(ledger.rows(MODEL)) == "2"


def test_the_rows_are_plain_sql(path: Path) -> None:
    """Whoever audits needs sqlite3 and nothing of ours."""
    record(ledger_at(path), "promote", "1", decision="PASS")
    rows = sqlite3.connect(path).execute("select model, number, payload from ledger_rows").fetchall()
    assert [(model, number, json.loads(content)["decision"]) for model, number, content in rows] == [(MODEL, 1, "PASS")]


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        (lambda folder: f"sqlite:///{folder}/nowhere/ledger.db", InfrastructureError, "unable to open database file"),
        (lambda _: "postgresql://u:s3cret@127.0.0.1:1/ledger?password=s3cret", InfrastructureError, "does not answer"),
        (
            lambda _: "postgresql://u:p@s3cret/w0rd@db/ledger",
            InputError,
            "has an @ or / in its password; write them as",
        ),
        (lambda _: "postgresql://u:s3cret/w0rd@db/ledger", InputError, "has an @ or / in its password; write them as"),
        (lambda _: "mysql://u:s3cret@db/ledger", InputError, "is none of SQLite or PostgreSQL"),
        (lambda _: "s3cret", InputError, "is none of SQLite or PostgreSQL"),
    ],
)
def test_a_database_out_of_reach_says_so_without_its_password(
    tmp_path: Path, url: Callable[[Path], str], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        ledger_at(url(tmp_path)).begin(MODEL)
    assert "s3cret" not in str(raised.value) and "w0rd" not in str(raised.value)


def test_a_damaged_file_and_a_newer_schema_are_said(path: Path) -> None:
    record(ledger_at(path), "promote", "1")
    edit(path, "UPDATE ledger_meta SET value = '2' WHERE key = 'schema'")
    with pytest.raises(InputError, match="the ledger's tables have schema 2, and this segmill knows 1"):
        ledger_at(path).rows()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"the ledger at sqlite:///.*\.db cannot be used \(file is not a database"):
        ledger_at(path).rows()


def test_the_address_comes_from_the_environment_then_params_then_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGMILL_LEDGER_URL", raising=False)
    assert ledger_url(tmp_path) == f"sqlite:///{tmp_path}/ledger.db"
    assert ledger_url(tmp_path, "sqlite:///a@b/c@d.db") == f"sqlite:///{tmp_path}/a@b/c@d.db"
    assert ledger_at(ledger_url(tmp_path, "sqlite:///a@b/c@d.db")).rows() == []
    monkeypatch.setenv("SEGMILL_LEDGER_URL", "postgresql://db/ledger")
    assert ledger_url(tmp_path, "sqlite:///other.db") == "postgresql://db/ledger"
