"""The ledger: what is written stays; two who judged against the same champion cannot both write."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from segmill.errors import InfrastructureError, InputError
from segmill.promotion.ledger import Entry, append, entries, last_number

FIRST = Entry("promote", "segmill-brain", "1", None, "PASS", ["It reaches the floor."], {"challenger_miou": 0.8})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def test_an_entry_comes_back_as_it_was_written(url: str) -> None:
    written = append(url, FIRST, after=0)
    assert entries(url) == [written]
    assert replace(written, time="", number=0) == FIRST
    assert written.number == 1
    assert abs((datetime.now(UTC) - datetime.fromisoformat(written.time)).total_seconds()) < 60


def test_newest_first_and_numbered_per_model(url: str) -> None:
    append(url, FIRST, after=0)
    append(url, replace(FIRST, model="segmill-street"), after=0)
    append(url, replace(FIRST, action="refuse", version="2", previous="1", decision="FAIL"), after=1)
    assert [(entry.model, entry.number) for entry in entries(url)] == [
        ("segmill-brain", 2), ("segmill-street", 1), ("segmill-brain", 1),
    ]  # fmt: skip
    assert [entry.version for entry in entries(url, "segmill-brain")] == ["2", "1"]
    assert [entry.version for entry in entries(url, "segmill-brain", limit=1)] == ["2"]
    assert last_number(url, "segmill-brain") == 2


def test_an_absent_ledger_is_empty(url: str) -> None:
    assert entries(url) == [] and last_number(url, "segmill-brain") == 0


def test_who_judged_against_yesterdays_champion_is_refused(url: str) -> None:
    append(url, FIRST, after=0)
    append(url, replace(FIRST, version="2", previous="1"), after=1)
    with pytest.raises(InfrastructureError, match=r"judge again against the champion of entry 2"):
        append(url, replace(FIRST, version="3", previous="1"), after=1)
    assert [entry.version for entry in entries(url)] == ["2", "1"]


def test_of_many_at_once_one_gets_in(url: str) -> None:
    append(url, FIRST, after=0)

    def promote(version: int) -> bool:
        try:
            append(url, replace(FIRST, version=str(version), previous="1"), after=1)
        except InfrastructureError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(promote, range(2, 10))) == 1
    assert len(entries(url)) == 2


def test_refuses_unknown_actions_and_figures_json_cannot_hold(url: str) -> None:
    with pytest.raises(InputError, match="Action praise is unknown to the ledger; allowed are promote"):
        append(url, replace(FIRST, action="praise"), after=0)
    with pytest.raises(ValueError, match="Out of range float"):
        append(url, replace(FIRST, facts={"gain": float("nan")}), after=0)
    assert entries(url) == []


def test_a_database_out_of_reach_says_so_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"does not answer \(unable to open database file\)"):
        entries(f"sqlite:///{tmp_path}/nowhere/ledger.db")


def test_the_table_is_plain_sql(url: str, tmp_path: Path) -> None:
    """Whoever audits needs sqlite3 and nothing of ours."""
    append(url, FIRST, after=0)
    rows = sqlite3.connect(tmp_path / "ledger.db").execute("select model, version, decision, facts from promotions")
    assert rows.fetchall() == [("segmill-brain", "1", "PASS", '{"challenger_miou": 0.8}')]
