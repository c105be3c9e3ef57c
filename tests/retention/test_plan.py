"""The plan alone: who stays and why, which runs are old, what nothing needs, and what a deletion frees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import MODEL, ledger_at, record

from segmill.keep_params import KeepParams
from segmill.promotion.collected import PastRun, VersionFacts
from segmill.promotion.ledger import Ledger
from segmill.promotion.moves import waits
from segmill.retention.plan import DAY_S, FoundFile, Removal, by_store, freed_bytes, kept_versions, old_runs, unneeded

NOW = 1000 * DAY_S


def facts(version: str, days: float = 100, **own: Any) -> VersionFacts:
    """Return a version that was made so many days ago."""
    plain = {"run_id": f"run{version}", "source": f"/store/{version}", "made_s": NOW - days * DAY_S, "tags": {}}
    return VersionFacts(version=version, **(plain | own))


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    """Versions 1, 3 and 4 were promoted one after the other, 2 was refused, 5 waits for approval."""
    book = ledger_at(tmp_path / "ledger.db")
    for version, action in (("1", "promote"), ("2", "refuse"), ("3", "promote"), ("4", "promote")):
        record(book, action, version, decision="PASS" if action == "promote" else "FAIL")
    record(book, "await", "5", decision="PASS", facts=waits("one", 7))
    return book


def kept(book: Ledger, *versions: VersionFacts, aliases: dict[str, str] | None = None, **keep: Any) -> dict[str, str]:
    known = versions or [facts(str(number)) for number in range(1, 13)]
    settings = KeepParams(**{"versions": 1, "champions": 1, **keep})
    return kept_versions(book.rows(MODEL), known, aliases or {"champion": "4"}, settings, NOW)


def test_the_champion_its_predecessor_what_waits_and_the_newest_stay(book: Ledger) -> None:
    assert kept(book) == {
        "3": "former champion", "4": "champion", "5": "waits for approval", "12": "of the newest 1"
    }  # fmt: skip
    assert set(kept(book, champions=5, versions=3)) == {"1", "3", "4", "5", "10", "11", "12"}


def test_a_rollback_keeps_what_the_next_one_would_go_back_to(book: Ledger) -> None:
    record(book, "rollback", "3", because="it misses trams")
    assert kept(book, aliases={"champion": "3"}) == {
        "1": "former champion", "3": "champion", "5": "waits for approval", "12": "of the newest 1"
    }  # fmt: skip


def test_what_was_rejected_or_expired_waits_no_longer_and_an_alias_keeps(book: Ledger) -> None:
    record(book, "reject", "5")
    assert "5" not in kept(book)
    found = kept(book, aliases={"champion": "2", "shadow": "7"})
    assert found["7"] == "alias shadow" and found["2"] == "champion by MLflow's alias" and "4" in found


def test_what_is_young_and_what_shares_files_stays(book: Ledger) -> None:
    versions = [facts(str(number)) for number in range(1, 13)]
    versions[5] = facts("6", days=6.9)
    versions[6] = facts("7", source="/store/3/part")
    versions[7] = facts("8", source="/store/7")
    found = kept(book, *versions)
    assert (found["6"], found["7"]) == ("younger than 7 days", "has its files with version 3")
    assert "8" not in found, "its folder's name only begins alike"


def test_whose_files_are_gone_does_not_count_among_the_newest(book: Ledger) -> None:
    versions = [facts(str(number), gone=number > 10) for number in range(1, 13)]
    assert set(kept(book, *versions, versions=1)) == {"3", "4", "5", "10"}


def test_a_model_without_a_ledger_keeps_its_alias_and_the_newest(tmp_path: Path) -> None:
    book = ledger_at(tmp_path / "ledger.db")
    assert set(kept(book, aliases={"champion": "2"})) == {"2", "12"}


def run(run_id: str, *, parent: str | None = None, version: str = "", days: float | None = 400) -> PastRun:
    return PastRun(run_id, run_id, parent, version, None if days is None else NOW - days * DAY_S)


def test_runs_go_as_families_and_never_those_of_a_version_that_stays() -> None:
    runs = [
        run("old"), run("old child", parent="old"),
        run("young", days=10), run("old child of it", parent="young"),
        run("judged", version="3"), run("its child", parent="judged"),
        run("registered"), run("open", days=None), run("other", version="9"),
    ]  # fmt: skip
    keep = KeepParams()
    found = old_runs(runs, {"3": "champion"}, {"registered"}, keep, NOW)
    assert [one.run_id for one in found] == ["old", "old child", "other"]
    assert old_runs(runs, {}, set(), KeepParams(run_days=None), NOW) == []


def test_only_known_old_and_unneeded_objects_go() -> None:
    objects = [FoundFile(name, 1, modified) for name, modified in {"a": 1.0, "b": 1.0, "c": 9.0, "d": 1.0}.items()]
    assert [one.name for one in unneeded(objects, {"a"}, None, 5.0)] == ["b", "d"]
    assert [one.name for one in unneeded(objects, {"a"}, {"a", "d"}, 5.0)] == ["d"]


def test_a_hard_link_frees_its_bytes_with_its_last_name() -> None:
    both = [
        Removal(
            "dvc_cache",
            "files",
            "",
            "objects",
            (FoundFile("x", 100, 0.0, (1, 7), 3), FoundFile("y", 5, 0.0, (1, 8), 1)),
        ),
        Removal("remote", "files", "", "objects", (FoundFile("x", 100, 0.0, (1, 7), 3), FoundFile("far", 11, 0.0))),
    ]
    assert freed_bytes(both) == 5 + 11, "a third name of x stays"
    third = Removal("registry", "version 1", "", "1", (FoundFile("weights", 100, 0.0, (1, 7), 3),))
    assert freed_bytes([*both, third]) == 100 + 5 + 11
    assert by_store([*both, third]) == {"dvc_cache": (1, 105), "remote": (1, 111), "registry": (1, 100)}


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from(("promote", "rollback", "refuse")), st.integers(1, 8)), max_size=12),
    versions=st.integers(1, 4),
    champions=st.integers(1, 4),
)
def test_whatever_happened_the_champion_and_what_rollbacks_go_back_to_stay(
    moves: list[tuple[str, int]], versions: int, champions: int
) -> None:
    """The champions are followed here as a person would: each rollback drops all that were promoted since."""
    from segmill.promotion.rows import LedgerRow

    rows: list[LedgerRow] = []
    stack: list[str] = []
    for action, number in moves:
        version = str(number)
        if action == "rollback" and version not in stack[:-1]:
            continue
        before = stack[-1] if stack else None
        if action != "refuse":
            stack = [*(stack[: stack.index(version)] if version in stack else stack), version]
        rows.append(
            LedgerRow(
                model=MODEL, number=len(rows) + 1, time="", action=action, version=version, previous=before,
                champion=stack[-1] if stack else None, decision=None, reasons=[], facts={}, because="", actor={},
                writer=0, previous_hash="", hash="", key_id="", signature="",
            )
        )  # fmt: skip
    keep = KeepParams(versions=versions, champions=champions)
    found = kept_versions(rows, [facts(str(number)) for number in range(1, 9)], {}, keep, NOW)
    assert set(found) == {*stack[-champions - 1 :], *(str(number) for number in range(9 - versions, 9))}
