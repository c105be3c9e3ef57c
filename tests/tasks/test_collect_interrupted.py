"""A collection that is killed, or at which somebody lets a version serve: nothing that serves loses a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from nights import Nights, keeping, later, loads

from segmill.errors import InfrastructureError, InputError
from segmill.promotion import points
from segmill.promotion.collected import versions_of
from segmill.promotion.moves import Decision, roll_back
from tasks.promote import mirrored
from tests.tasks.test_collect import verifies

pytestmark = pytest.mark.fault


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("point", ["before collect row", "after collect row", "in deletion", "after deletion"])
def test_what_was_interrupted_is_finished_by_the_next(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    keeping(nights, versions=1, champions=1)
    reached: list[str] = []

    def kill(at: str) -> None:
        reached.append(at)
        if reached.count(point) == 2:
            raise Killed

    monkeypatch.setattr(points, "at", kill)
    with pytest.raises(Killed):
        later(nights)
    monkeypatch.undo()
    done = later(nights)
    assert set(done.kept) == {"3", "4", "6"}
    for version in done.kept:
        loads(nights, version)
        verifies(nights, version, tmp_path / version)
    assert {one.version for one in versions_of(nights.uri, nights.model)[0] if one.gone} == {"1", "2", "5"}
    assert nights.ledger.verify(nights.model) == []
    assert later(nights).removals == []


@pytest.mark.parametrize("at", ["before collect row", "after collect row", "in deletion"])
@pytest.mark.parametrize("begun", ["before", "meanwhile"])
def test_a_rollback_at_the_same_time_never_ends_with_a_champion_without_files(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, at: str, begun: str
) -> None:
    """Version 1 served once and does not stay; somebody goes back to it while its files are being deleted."""
    keeping(nights, versions=1, champions=1)
    refused: list[Exception] = []
    writer = nights.ledger.begin(nights.model)  # one who looked before the collection began
    done: list[str] = []

    def go_back(point: str) -> None:
        if point != at or done:
            return
        done.append(point)
        book, decision = nights.ledger, Decision(because="now", check=lambda version: loads(nights, version))
        if begun == "before":
            monkeypatch.setattr(type(book), "begin", lambda self, model: writer)
            decision = Decision(because="now", check=lambda version: {})  # it loaded the version before
        try:
            roll_back(book, nights.model, "1", decision)
        except (InputError, InfrastructureError) as error:
            refused.append(error)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(points, "at", go_back)
    found = later(nights)
    assert done
    champion = nights.ledger.rows(nights.model)[-1].champion
    assert champion == ("1" if not refused else "4")
    assert champion is not None and champion in found.kept
    loads(nights, champion)
    assert bool(refused) == (at != "before collect row" or begun == "meanwhile")


def test_an_ensemble_that_comes_again_gets_its_files_back(nights: Nights) -> None:
    keeping(nights, versions=1, champions=1)
    later(nights)
    rows = len(nights.ledger.rows(nights.model))
    row = nights.night(2, "refuse", data=False, member_of=nights.data["2"])
    assert row.version == "2", "the same number, for the same ensemble"
    loads(nights, "2")
    assert len(nights.ledger.rows(nights.model)) == rows + 1


def test_a_version_that_lost_files_in_an_interrupted_collection_is_not_given_back(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping(nights, versions=1, champions=1)

    def kill(at: str) -> None:
        if at == "in deletion":
            raise Killed

    monkeypatch.setattr(points, "at", kill)
    with pytest.raises(Killed):
        later(nights)
    monkeypatch.undo()
    done = later(keeping(nights, versions=6))
    assert "1" not in done.kept and "version 1 (of the newest 6) has lost files" in done.notes[0]
    with pytest.raises(InputError, match="were deleted"):
        loads(nights, "1")


def test_one_whose_deletion_was_only_begun_is_given_back(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping(nights, versions=1, champions=1)

    def kill(at: str) -> None:
        if at == "before collect row":
            raise Killed

    monkeypatch.setattr(points, "at", kill)
    with pytest.raises(Killed):
        later(nights)
    monkeypatch.undo()
    assert "1" in later(keeping(nights, versions=6)).kept
    loads(nights, "1")


def test_a_champion_that_was_tagged_just_before_it_served_is_given_back_by_the_next_command(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rollback won, and the collection was killed before it saw that."""
    keeping(nights, versions=1, champions=1)

    def go_back(point: str) -> None:
        if point == "before collect row":
            monkeypatch.undo()
            loaded = Decision(because="now", check=lambda version: {})
            roll_back(nights.ledger, nights.model, "1", loaded)
            raise Killed

    monkeypatch.setattr(points, "at", go_back)
    with pytest.raises(Killed):
        later(nights)
    with mirrored(nights.workspace, nights.params, nights.uri, nights.ledger, nights.model):
        loads(nights, "1")
    assert "1" in later(nights).kept
