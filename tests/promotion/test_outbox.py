"""The outbox: a row's notice is there if the row is, and only for what somebody wants to hear of."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ledgers import ANNA, MODEL, record, trusting
from postings import a_row
from sqlalchemy import Connection, select

from segmill.promotion.database import URL_VARIABLE, Database, has_table
from segmill.promotion.keys import make_signing_key, trust
from segmill.promotion.ledger import open_ledger, workspace_ledger
from segmill.promotion.outbox import METADATA, NOTICES, add, add_drift, add_not_served, kind_of
from segmill.promotion.rows import LedgerRow


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (a_row("promote"), "promoted"),
        (a_row("overrule"), "promoted"),
        (a_row("approve", champion="2"), "promoted"),
        (a_row("approve", champion="1"), None),  # the first of two
        (a_row("refuse", champion="1"), "refused"),
        (a_row("rollback"), "rolled_back"),
        (a_row("await", champion="1"), "approval_wanted"),
        (a_row("alias", champion="1"), "alias_moved"),
        *[(a_row(action, champion="1"), None) for action in ("reject", "adopt", "measure")],
    ],
)
def test_an_action_makes_one_kind_of_notice(row: LedgerRow, kind: str | None) -> None:
    assert kind_of(row) == kind


def notices(url: str, model: str) -> list[tuple[int, str, dict[str, Any]]]:
    with Database(url).reading() as connection:
        if connection is None or not has_table(connection, NOTICES):
            return []
        query = select(NOTICES.c.number, NOTICES.c.kind, NOTICES.c.payload).where(NOTICES.c.model == model)
        return [(row.number, row.kind, json.loads(row.payload)) for row in connection.execute(query)]


def test_a_row_of_the_ledger_brings_its_notice(url: str) -> None:
    ledger = open_ledger(url, trusted=trusting(ANNA), key=ANNA, in_transaction=add)
    record(ledger, "promote", "1", "brings")
    row = record(ledger, "refuse", "2", "brings", decision="FAIL", reasons=["mIoU is 0.1 lower."])
    record(ledger, "measure", "1", "brings")
    (first, second) = notices(url, "brings")
    assert first[:2] == (1, "promoted") and second[:2] == (2, "refused")
    assert second[2]["version"] == "2" and second[2]["champion"] == "1" and second[2]["reasons"] == row.reasons
    assert second[2]["hash"] == row.hash and second[2]["actor"] == row.actor


def test_the_ledger_of_a_workspace_brings_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    trust(tmp_path, make_signing_key().public)
    record(workspace_ledger(tmp_path), "promote", "1")
    assert [notice[:2] for notice in notices(f"sqlite:///{tmp_path}/ledger.db", MODEL)] == [(1, "promoted")]


def test_a_row_that_is_not_appended_has_no_notice(url: str) -> None:
    def fail(connection: Connection, row: LedgerRow) -> None:
        add(connection, row)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record(open_ledger(url, trusted=trusting(ANNA), key=ANNA, in_transaction=fail), "promote", "1", "fails")
    assert notices(url, "fails") == [] and open_ledger(url, trusted=trusting(ANNA)).rows("fails") == []


def test_two_who_make_the_tables_at_once_both_add_their_notice(url: str) -> None:
    def append(number: int) -> None:
        ledger = open_ledger(url, trusted=trusting(ANNA), key=ANNA, in_transaction=add)
        record(ledger, "promote", "1", f"model-{number}")

    with Database(url).writing() as connection:
        METADATA.drop_all(connection)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    assert [len(notices(url, f"model-{number}")) for number in range(8)] == [1] * 8


def test_a_change_of_the_images_is_one_notice(url: str) -> None:
    for evidence in (21.5, 30.0):
        add_drift(url, model="street", version="3", since="2026-11-30T04:00:00+00:00", images=57, evidence=evidence)
    ((number, kind, said),) = notices(url, "street")
    assert (number, kind) == (0, "drift") and (said["version"], said["images"], said["evidence"]) == ("3", 57, 21.5)
    assert said["reasons"] == ["the images of version 3 are not like those it learned, since 2026-11-30T04:00:00+00:00"]


def test_a_version_that_the_service_refused_is_one_notice_for_each_row(url: str) -> None:
    for why in ("it was changed after it was signed", "the same, 5 minutes later"):
        add_not_served(url, model="street", number=4, version="3", champion="2", why=why)
    add_not_served(url, model="street", number=6, version="3", champion=None, why="again")
    (first, second) = notices(url, "street")
    said = {"model": "street", "number": 4, "version": "3", "champion": "2"}
    assert first == (4, "not_served", said | {"reasons": ["it was changed after it was signed"]})
    assert second[0] == 6 and second[2]["champion"] is None
