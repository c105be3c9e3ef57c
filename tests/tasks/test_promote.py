"""A verdict holds for one champion and its settings; what serves, waits or people decided is not judged again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ledgers import MODEL, ledger_at, record

from segmill.errors import InfrastructureError
from segmill.params import PromotionParams, read_params
from segmill.promotion.ledger import Ledger
from segmill.promotion.moves import waits
from segmill.workspace import template
from tasks.judging import gate_settings
from tasks.promote import earlier_judgement, outcome_of, with_outcome

PARAMS = read_params(template("params.yaml"))


def settings(sealed: tuple[str, ...] = (), **changed: Any) -> dict[str, Any]:
    split = PARAMS.split.model_copy(update={"sealed": sealed})
    return gate_settings(PARAMS.model_copy(update={"promotion": PromotionParams(**changed), "split": split}))


SETTINGS = settings()


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return ledger_at(tmp_path / "ledger.db")


def judged(book: Ledger, action: str, version: str, **facts: Any) -> None:
    decision = {"refuse": "FAIL"}.get(action, "PASS")
    record(
        book,
        action,
        version,
        decision=decision,
        reasons=["a reason"],
        facts={"settings": SETTINGS, **facts},
    )


def known(book: Ledger, version: str, **changed: Any) -> str | None:
    found = earlier_judgement(book.rows(MODEL), version, settings(**changed))
    return found.outcome if found else None


@pytest.mark.parametrize(
    "changed",
    [{"floor_miou": 0.4}, {"min_gain": 0.01}, {"rule": "plain"}, {"guards": {"class_loss": 0.1}}, {"sealed": ("a",)}],
)
def test_a_changed_setting_asks_for_a_new_verdict(book: Ledger, changed: dict[str, Any]) -> None:
    judged(book, "promote", "1")
    judged(book, "refuse", "2")
    assert known(book, "2") == f"version 2 of {MODEL} was not promoted; version 1 stays the champion"
    assert known(book, "2", **changed) is None
    assert known(book, "2", approval="two", approval_days=1) is not None, "who must agree decides no verdict"
    assert known(book, "3") is None


def test_what_serves_is_not_judged_again(book: Ledger) -> None:
    judged(book, "promote", "1")
    assert known(book, "1", floor_miou=0.99) == f"version 1 of {MODEL} is the champion now"
    found = earlier_judgement(book.rows(MODEL), "1", SETTINGS)
    assert found is not None and (found.rival, found.rival_serves, found.row) == (None, False, 1)


def test_another_champion_asks_for_a_new_verdict(book: Ledger) -> None:
    judged(book, "promote", "1")
    judged(book, "refuse", "2")
    judged(book, "promote", "3")
    assert known(book, "2") is None


def test_the_rival_is_who_served_when_it_was_judged(book: Ledger) -> None:
    judged(book, "promote", "1")
    judged(book, "refuse", "2")
    found = earlier_judgement(book.rows(MODEL), "2", SETTINGS)
    assert found is not None and (found.rival, found.rival_serves) == ("1", True)
    judged(book, "promote", "3")
    found = earlier_judgement(book.rows(MODEL), "3", SETTINGS)
    assert found is not None and (found.rival, found.rival_serves) == ("1", False)


def test_a_rollback_is_not_undone_by_the_next_run(book: Ledger) -> None:
    """The next run had made the version champion again that a person had rolled back."""
    judged(book, "promote", "1")
    judged(book, "promote", "2")
    record(book, "rollback", "1", because="it misses trams")
    said = known(book, "2")
    assert said is not None
    assert said.startswith(f"version 2 of {MODEL} was rolled back by ")
    assert "(it misses trams), so it is not judged again; version 1 stays the champion" in said
    record(book, "overrule", "2", because="trams are gone")
    assert known(book, "2") == f"version 2 of {MODEL} is the champion now, over the gate's verdict"
    assert "was replaced" in str(known(book, "1"))


def test_what_waits_is_not_judged_again_until_its_time_is_over(book: Ledger) -> None:
    judged(book, "promote", "1")
    judged(book, "await", "2", **waits("two", 7))
    said = known(book, "2")
    assert said is not None and "version 2 of segmill-brain waits for 2 approvals until 20" in said
    assert said.endswith("version 1 stays the champion until then")
    judged(book, "await", "3", **waits("one", -1))
    assert known(book, "3") is None, "it expired"
    assert known(book, "2") is None, "a newer PASS took its place"


def test_an_earlier_releases_verdict_is_judged_again(tmp_path: Path) -> None:
    from ledgers import write_earlier

    write_earlier(tmp_path / "ledger.db", ("promote", "1", None, "PASS"), ("refuse", "2", "1", "FAIL"))
    book = ledger_at(tmp_path / "ledger.db")
    assert known(book, "2") is None and known(book, "1") == f"version 1 of {MODEL} is the champion now"


def test_what_became_of_a_decision_is_a_sentence(book: Ledger) -> None:
    judged(book, "promote", "1")
    judged(book, "promote", "2")
    row = record(book, "rollback", "1", because="it misses trams")
    assert outcome_of(row, book.rows(MODEL)) == f"version 1 of {MODEL} is the champion again, by a rollback"


def test_a_server_that_dies_after_the_verdict_does_not_hide_it() -> None:
    said = r"^version 2 of street is the champion now, but the run was not completed: MLflow at x does not answer$"
    with pytest.raises(InfrastructureError, match=said), with_outcome("version 2 of street is the champion now"):
        raise InfrastructureError("MLflow at x does not answer")
