"""What people decide: it is recorded with its reason, it stays, and approvals come from the keys they must be of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ledgers import ANNA, MODEL, key_of, record, trusting

from segmill.errors import InputError, SegmillError
from segmill.promotion import history
from segmill.promotion.keys import SigningKey
from segmill.promotion.ledger import Ledger, open_ledger
from segmill.promotion.moves import Approval, Decision, approve, overrule, reject, roll_back, waits
from segmill.promotion.rows import waiting

BEN, CLARA, EVE = key_of("ben"), key_of("clara"), key_of("eve")


def ledger(path: Path, key: SigningKey = ANNA) -> Ledger:
    return open_ledger(f"sqlite:///{path}/ledger.db", trusted=trusting(ANNA, BEN, CLARA), key=key)


def because(text: str = "it misses trams") -> Decision:
    return Decision(because=text, check=lambda version: {"manifest_sha256": f"of {version}"})


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    """Versions 1, 2 and 4 were promoted one over the other; 3 was refused."""
    found = ledger(tmp_path)
    for version, decision in (("1", "PASS"), ("2", "PASS"), ("3", "FAIL"), ("4", "PASS")):
        record(found, "promote" if decision == "PASS" else "refuse", version, decision=decision)
    return found


def test_a_rollback_goes_back_one_by_one_and_says_why(book: Ledger) -> None:
    row = roll_back(book, MODEL, None, because())
    assert (row.action, row.version, row.champion, row.previous) == ("rollback", "2", "2", "4")
    assert (row.because, row.facts) == ("it misses trams", {"manifest_sha256": "of 2"})
    assert roll_back(book, MODEL, None, because()).champion == "1", "not forward to 4 again"
    with pytest.raises(InputError, match=r"version 1 of .* is the first champion"):
        roll_back(book, MODEL, None, because())
    assert roll_back(book, MODEL, "4", because()).champion == "4"
    assert roll_back(book, MODEL, None, because()).champion == "1", "what 4 was put over"


def test_what_cannot_be_gone_back_to_is_named(book: Ledger, tmp_path: Path) -> None:
    for to, said in (("4", "serves already"), ("3", "never served; `segmill promote 3"), ("9", "never served")):
        with pytest.raises(InputError, match=said):
            roll_back(book, MODEL, to, because())
    with pytest.raises(InputError, match="no version of segmill-other serves"):
        roll_back(book, "segmill-other", None, because())
    with pytest.raises(InputError, match="needs a reason"):
        because(" ")


def test_a_version_that_may_not_serve_is_not_recorded(book: Ledger) -> None:
    def refuse(version: str) -> dict[str, Any]:
        raise SegmillError(f"version {version} does not load")

    for decide in (
        lambda decision: roll_back(book, MODEL, None, decision),
        lambda decision: overrule(book, MODEL, "3", decision, approval="none", days=7),
    ):
        with pytest.raises(SegmillError, match="does not load"):
            decide(Decision(because="so", check=refuse))
    assert len(book.rows(MODEL)) == 4


def test_what_people_decided_against_is_set_aside_until_people_bring_it_back(book: Ledger) -> None:
    assert history.set_aside(book.rows(MODEL), "4") is None
    roll_back(book, MODEL, None, because())
    against = history.set_aside(book.rows(MODEL), "4")
    assert against is not None and (against.action, against.because) == ("rollback", "it misses trams")
    assert history.set_aside(book.rows(MODEL), "2") is None and history.set_aside(book.rows(MODEL), "3") is None
    overrule(book, MODEL, "4", because("trams are gone"), approval="none", days=7)
    assert history.set_aside(book.rows(MODEL), "4") is None
    assert (against := history.set_aside(book.rows(MODEL), "2")) is not None and against.action == "overrule"


def test_overruling_is_recorded_as_such_and_waits_where_approval_is_asked_for(book: Ledger) -> None:
    row = overrule(book, MODEL, "3", because(), approval="none", days=7)
    assert (row.action, row.champion, row.decision) == ("overrule", "3", None)
    with pytest.raises(InputError, match=r"version 3 of .* serves already"):
        overrule(book, MODEL, "3", because(), approval="none", days=7)
    row = overrule(book, MODEL, "2", because(), approval="one", days=7)
    assert (row.action, row.champion, row.facts["overrule"]) == ("await", "3", True)
    assert approve(book, MODEL, None, because("yes"), key_id=ANNA.public.id).champion == "2"
    assert history.set_aside(book.rows(MODEL), "3") is not None, "approved, it is a person's decision still"
    assert history.set_aside(book.rows(MODEL), "2") is None


def wait_for(book: Ledger, version: str = "5", needed: Approval = "two", days: float = 7) -> None:
    facts = waits(needed, days)
    record(book, "await", version, decision="PASS", facts=facts)


def test_two_others_approve_each_with_a_key_of_their_own(book: Ledger, tmp_path: Path) -> None:
    wait_for(book)
    with pytest.raises(InputError, match="whoever made the version may not approve it"):
        approve(book, MODEL, "5", because("mine"), key_id=ANNA.public.id)
    of_ben, of_clara = ledger(tmp_path, BEN), ledger(tmp_path, CLARA)
    first = approve(of_ben, MODEL, "5", because("seen"), key_id=BEN.public.id)
    assert (first.champion, first.facts["approvals"]) == ("4", 1)
    found = waiting(book.rows(MODEL))
    assert found is not None and found.missing == 1
    with pytest.raises(InputError, match="this key has approved version 5 already"):
        approve(of_ben, MODEL, "5", because("again"), key_id=BEN.public.id)
    assert approve(of_clara, MODEL, None, because("seen too"), key_id=CLARA.public.id).champion == "5"
    assert waiting(book.rows(MODEL)) is None
    with pytest.raises(InputError, match=r"no version of .* waits for approval"):
        approve(of_clara, MODEL, None, because("once more"), key_id=CLARA.public.id)


def test_an_approval_by_a_key_that_nobody_trusts_does_not_count(book: Ledger, tmp_path: Path) -> None:
    wait_for(book, needed="one")
    with pytest.raises(InputError, match=f"does not list the key {EVE.public.id}"):
        approve(ledger(tmp_path, EVE), MODEL, "5", because("me"), key_id=EVE.public.id)
    assert (found := waiting(book.rows(MODEL))) is not None and found.missing == 1


def test_one_approval_may_be_the_authors(book: Ledger) -> None:
    wait_for(book, needed="one")
    with pytest.raises(InputError, match=r"version 3 of .* does not wait for approval; version 5 does"):
        approve(book, MODEL, "3", because("yes"), key_id=ANNA.public.id)
    assert approve(book, MODEL, "5", because("yes"), key_id=ANNA.public.id).champion == "5"


def test_a_rejected_version_is_set_aside(book: Ledger) -> None:
    wait_for(book)
    with pytest.raises(InputError, match="needs a reason"):
        reject(book, MODEL, "5", "")
    row = reject(book, MODEL, None, "blurred")
    assert (row.version, row.champion, row.because) == ("5", "4", "blurred")
    assert waiting(book.rows(MODEL)) is None
    assert (against := history.set_aside(book.rows(MODEL), "5")) is not None and against.action == "reject"


def test_an_approval_that_comes_too_late_or_for_another_champion_is_refused(book: Ledger) -> None:
    wait_for(book, days=-1)
    with pytest.raises(InputError, match=r"the time to approve version 5 .* ended"):
        approve(book, MODEL, None, because("late"), key_id=BEN.public.id)
    wait_for(book, "6")
    with pytest.raises(InputError, match=r"version 5 of .* does not wait for approval; version 6 does"):
        approve(book, MODEL, "5", because("superseded"), key_id=BEN.public.id)
    roll_back(book, MODEL, None, because())
    with pytest.raises(InputError, match=r"the champion of .* changed since version 6 was judged"):
        approve(book, MODEL, None, because("yes"), key_id=BEN.public.id)


def test_the_time_to_approve_is_that_of_the_settings() -> None:
    facts = waits("two", 2)
    until = datetime.fromisoformat(facts["expires"]) - datetime.now(UTC)
    assert facts["approvals_needed"] == 2 and timedelta(days=1.99) < until < timedelta(days=2)
