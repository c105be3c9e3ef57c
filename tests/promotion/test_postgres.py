"""The ledger in a real PostgreSQL: what SQLite does with one file lock, it does with row locks."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ledgers import MODEL, ledger_at, record
from sqlalchemy import create_engine, text

from segmill.errors import InfrastructureError
from segmill.promotion import points
from segmill.promotion.database import EARLIER
from segmill.promotion.ledger import Conflict, LedgerError
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.rows import Entry

BESIDE = Path(__file__).parents[2] / "benchmarks" / "postgres_server.py"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL that this module's tests share."""
    if shutil.which("initdb") is None:
        pytest.skip("there is no PostgreSQL here")
    spec = importlib.util.spec_from_file_location("postgres_server", BESIDE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.postgres() as url:
        yield url


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    name = f"ledger_{abs(hash(request.node.name))}"
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.replace("/postgres?", f"/{name}?")


def change(url: str, *statements: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_rows_are_kept_fenced_and_verified(url: str) -> None:
    ledger = ledger_at(url)
    assert ledger.rows() == [] == ledger.models()
    first, late = (
        record(ledger, "promote", "1", decision="PASS", facts={"miou": 0.5, "name": "\x00\u00e9"}),
        ledger.begin(MODEL),
    )
    second = record(ledger, "promote", "2")
    assert ledger.rows(MODEL) == [first, second] and ledger.verify(MODEL) == []
    with pytest.raises(Conflict, match="a later writer"):
        ledger.append(late, Entry(action="promote", version="3"))
    number = ledger.begin_move(MODEL, "2")
    assert ledger.position(MODEL).moving == {"2"}
    ledger.mirrored(MODEL, 2, [number])
    assert (ledger.position(MODEL).moving, ledger.position(MODEL).mirrored) == (frozenset(), 2)
    change(url, "UPDATE ledger_rows SET payload = replace(payload, 'PASS', 'FAIL') WHERE number = 1")
    with pytest.raises(LedgerError, match="row 1 of segmill-brain is not to be believed: its content was changed"):
        ledger.begin(MODEL)


def test_many_who_make_the_tables_and_append_at_once(url: str) -> None:
    """Everybody begins with no tables; whoever loses judges again, until each has a row."""

    def promote(version: int) -> int:
        ledger = ledger_at(url)
        while True:
            try:
                return record(ledger, "promote", str(version)).number
            except Conflict:
                continue

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(promote, range(24)))
    rows = ledger_at(url).rows(MODEL)
    assert sorted(numbers) == [row.number for row in rows] == list(range(1, 25))
    assert {row.version for row in rows} == {str(version) for version in range(24)}
    assert ledger_at(url).verify(MODEL) == []


def test_an_earlier_releases_table_is_taken_over_once(url: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    EARLIER.create(engine)
    with engine.begin() as connection:
        row = {"model": MODEL, "number": 1, "time": "2026-11-01T00:00:00+00:00", "action": "promote", "version": "7"}
        connection.execute(EARLIER.insert(), {**row, "decision": "PASS", "reasons": json.dumps([]), "facts": "{}"})
    engine.dispose()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ledger_at(url).begin(MODEL), range(4)))
    record(ledger_at(url), "refuse", "8")
    assert [(row.version, row.champion, row.taken_over) for row in ledger_at(url).rows(MODEL)] == [
        ("7", "7", True), ("8", "7", False),
    ]  # fmt: skip
    assert ledger_at(url).verify(MODEL) == []


def test_a_writer_that_hangs_in_its_transaction_keeps_nobody_waiting_for_ever(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others give up after WAIT_S, shortened here; the one that hung is cut off by the server after twice that."""
    monkeypatch.setattr("segmill.promotion.database.WAIT_S", 1)
    record(ledger_at(url), "promote", "1")
    inside, go = threading.Event(), threading.Event()

    def hang(point: str) -> None:
        if point == "in append" and threading.current_thread() is not threading.main_thread():
            inside.set()
            go.wait(60)

    monkeypatch.setattr(points, "at", hang)
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(record, ledger_at(url), "promote", "2")
        assert inside.wait(60)
        with pytest.raises(InfrastructureError, match="does not answer"):
            ledger_at(url).begin(MODEL)
        threading.Event().wait(2.5)
        assert record(ledger_at(url), "promote", "3").number == 2
        go.set()
        with pytest.raises(InfrastructureError, match="does not answer"):
            hung.result()
    assert [row.version for row in ledger_at(url).rows(MODEL)] == ["1", "3"]


def test_a_wrong_password_and_an_absent_server_are_said_without_it(tmp_path: Path, server: str) -> None:
    for url in (server.replace("segmill@", "nobody:s3cret@"), "postgresql://u:s3cret@127.0.0.1:1/x"):
        with pytest.raises(InfrastructureError, match=r"the ledger at postgresql://.* does not answer") as raised:
            ledger_at(ledger_url(tmp_path, url)).begin(MODEL)
        assert "s3cret" not in str(raised.value)
