"""The outbox: a row's notice is there if the row is, and only for what somebody wants to hear of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from postings import Row
from sqlalchemy import create_engine, select

from segmill.promotion.outbox import METADATA, NOTICES, add, kind_of


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (Row("promote"), "promoted"),
        (Row("overrule"), "promoted"),
        (Row("approve", champion="2"), "promoted"),
        (Row("approve", champion="1"), None),  # the first of two
        (Row("refuse", champion="1"), "refused"),
        (Row("rollback"), "rolled_back"),
        (Row("await", champion="1"), "approval_wanted"),
        (Row("alias", champion="1"), "alias_moved"),
        *[(Row(action, champion="1"), None) for action in ("reject", "expire", "supersede", "adopt", "measure")],
    ],
)
def test_an_action_makes_one_kind_of_notice(row: Row, kind: str | None) -> None:
    assert kind_of(row) == kind


def test_a_notice_is_there_if_its_row_is(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.db")
    METADATA.create_all(engine)
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        add(connection, Row(number=1))
        raise ZeroDivisionError
    with engine.begin() as connection:
        add(connection, Row(number=2))
        add(connection, Row("measure", number=3))
    with engine.connect() as connection:
        notices = connection.execute(select(NOTICES.c.number, NOTICES.c.kind, NOTICES.c.payload)).all()
    assert [tuple(notice)[:2] for notice in notices] == [(2, "promoted")]
    payload = json.loads(notices[0].payload)
    assert payload["version"] == "2" and payload["previous"] == "1" and payload["actor"] == {"name": "Ada"}
    assert payload["hash"] == Row(number=2).hash
