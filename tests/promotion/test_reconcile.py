"""MLflow follows the ledger: moves that were cut short are finished, and whoever else moved the alias is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledgers import MODEL, key_of, ledger_at, record, write_earlier
from mlflow import MlflowClient

from segmill.errors import InfrastructureError
from segmill.promotion import points
from segmill.promotion.ledger import Ledger, LedgerError
from segmill.promotion.reconcile import adopt, reconcile
from segmill.promotion.registry import aliased, set_alias
from segmill.promotion.rows import Entry

VERSIONS = 6


class Stopped(BaseException):
    """Stands for a process that is killed at a point."""


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with a model of six versions; it takes seconds to make. Copy it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    client = MlflowClient(f"sqlite:///{path}")
    client.create_registered_model(MODEL)
    for _ in range(VERSIONS):
        client.create_model_version(MODEL, "models")
    return path


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledger_at(tmp_path / "ledger.db")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Stop the next call that comes to a point; once."""

    def stop(point: str) -> None:
        assert point in points.POINTS

        def at(here: str) -> None:
            if here == point:
                monkeypatch.setattr(points, "at", lambda _: None)
                raise Stopped

        monkeypatch.setattr(points, "at", at)

    yield stop


def serving(uri: str) -> str | None:
    found = aliased(uri, MODEL, "champion")
    return found.version if found else None


def actions(ledger: Ledger) -> list[str]:
    return [row.action for row in ledger.rows(MODEL)]


@pytest.mark.long
def test_the_alias_follows_each_row_and_a_second_call_changes_nothing(uri: str, ledger: Ledger) -> None:
    assert reconcile(uri, ledger, MODEL) == [] and serving(uri) is None
    for action, version, serves in [
        ("promote", "1", "1"),
        ("refuse", "2", "1"),
        ("promote", "3", "3"),
        ("rollback", "1", "1"),
    ]:
        row = record(ledger, action, version)
        assert reconcile(uri, ledger, MODEL) == [] == reconcile(uri, ledger, MODEL)
        assert serving(uri) == serves
        tags = MlflowClient(uri).get_registered_model(MODEL).tags
        assert tags["ledger_head"] == f"{tags['ledger']} {row.number} {row.hash}"
        assert tags["ledger_address"] == ledger.address
        assert MlflowClient(uri).get_model_version(MODEL, version).tags["ledger_head"] == tags["ledger_head"]
    position = ledger.position(MODEL)
    assert (position.mirrored, position.moving) == (4, frozenset()) and actions(ledger)[-1] == "rollback"


@pytest.mark.parametrize(
    "point", ["before alias", "after alias", "between head tags", "before mirrored", "after mirrored"]
)
def test_what_a_kill_cut_short_the_next_run_finishes_without_a_word(
    uri: str, ledger: Ledger, stop_at: Callable[[str], None], point: str
) -> None:
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    record(ledger, "promote", "2")
    stop_at(point)
    with pytest.raises(Stopped):
        reconcile(uri, ledger, MODEL)
    assert reconcile(uri, ledger, MODEL) == []
    assert serving(uri) == "2" and actions(ledger) == ["promote", "promote"] and ledger.position(MODEL).mirrored == 2


def test_a_late_writers_alias_is_set_back_and_named(uri: str, ledger: Ledger) -> None:
    """Fault (a): P1 appends and pauses, P2 promotes over it, P1 sets its alias; the worse model served unnoticed."""
    record(ledger, "promote", "5")  # P1, which pauses here
    record(ledger, "promote", "6")  # P2
    assert reconcile(uri, ledger, MODEL) == [] and serving(uri) == "6"
    set_alias(uri, MODEL, "champion", "5")  # P1 comes back
    (said,) = reconcile(uri, ledger, MODEL)
    assert serving(uri) == "6"
    assert said.startswith(
        "somebody else moved the champion of segmill-brain in MLflow: version 5 serves there, and version 6 serves by "
        "the ledger (row 2 of "
    )
    row = ledger.rows(MODEL)[-1]
    assert (row.action, row.champion, row.facts["from"], row.facts["to"]) == ("alias", "6", "6", "5")
    assert reconcile(uri, ledger, MODEL) == []


def test_a_late_move_of_the_reconciler_itself_is_no_strangers(
    uri: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same race inside the reconciler: it paused between its note and the alias while another one promoted."""
    record(ledger, "promote", "5")

    def another_promotes(point: str) -> None:
        if point == "before alias":
            monkeypatch.setattr(points, "at", lambda _: None)
            record(ledger, "promote", "6")
            reconcile(uri, ledger, MODEL)
            assert serving(uri) == "6"

    monkeypatch.setattr(points, "at", another_promotes)
    (said,) = reconcile(uri, ledger, MODEL)
    assert said == "a run that was late had set version 5 of segmill-brain as champion; version 6 serves again"
    assert serving(uri) == "6" and actions(ledger) == ["promote", "promote"]


def test_an_alias_that_cannot_be_set_leaves_one_row(uri: str, ledger: Ledger) -> None:
    """Fault (b): an alias write that failed three times left three rows `promote` and the old champion."""
    record(ledger, "promote", "4")
    reconcile(uri, ledger, MODEL)
    record(ledger, "promote", "5")
    for _ in range(3):
        with pytest.raises(InfrastructureError, match="does not answer"):
            reconcile("http://127.0.0.1:9", ledger, MODEL)
        assert ledger.begin(MODEL).champion == "5"  # who tries again sees that it is recorded
    assert reconcile(uri, ledger, MODEL) == []
    assert serving(uri) == "5" and actions(ledger) == ["promote", "promote"]


def test_a_second_ledger_for_a_model_is_refused_until_it_is_adopted(uri: str, ledger: Ledger, tmp_path: Path) -> None:
    """Fault (c): two workspaces on one MLflow server had two ledgers, and both said "is the champion now"."""
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    second = ledger_at(tmp_path / "second.db")
    record(second, "promote", "2")
    with pytest.raises(LedgerError, match=r"in another ledger than .*second\.db: .* at .*/ledger\.db; name"):
        reconcile(uri, second, MODEL)
    assert serving(uri) == "1"

    row = adopt(uri, second, MODEL, "the first machine is gone")
    assert (row.champion, row.previous, row.because, serving(uri)) == ("1", "2", "the first machine is gone", "1")
    assert "before, it was" in row.reasons[1] and row.reasons[2].startswith("version 1 serves, as in MLflow")
    assert reconcile(uri, second, MODEL) == []
    with pytest.raises(LedgerError, match=r"recorded in another ledger than .*ledger\.db"):
        reconcile(uri, ledger, MODEL)


@pytest.mark.parametrize("by_hand", ["3", "1", None])
def test_an_alias_that_was_moved_or_deleted_by_hand_is_set_back_and_recorded(
    uri: str, ledger: Ledger, by_hand: str | None
) -> None:
    """Fault (d): an alias set by hand, to a version that failed too, was seen in `status` and nowhere in `history`."""
    for action, version in [("promote", "1"), ("promote", "2"), ("refuse", "3")]:
        record(ledger, action, version)
        reconcile(uri, ledger, MODEL)
    client = MlflowClient(uri)
    if by_hand:
        client.set_registered_model_alias(MODEL, "champion", by_hand)
    else:
        client.delete_registered_model_alias(MODEL, "champion")
    (said,) = reconcile(uri, ledger, MODEL)
    assert f"{f'version {by_hand} serves' if by_hand else 'no version serves'} there" in said
    row = ledger.rows(MODEL)[-1]
    assert (row.action, row.champion, row.facts["to"]) == ("alias", "2", by_hand)
    assert serving(uri) == "2" and reconcile(uri, ledger, MODEL) == []


def test_an_alias_without_any_promotion_is_taken_away(uri: str, ledger: Ledger) -> None:
    record(ledger, "refuse", "1")
    reconcile(uri, ledger, MODEL)
    set_alias(uri, MODEL, "champion", "1")
    (said,) = reconcile(uri, ledger, MODEL)
    assert "version 1 serves there, and no version serves by the ledger" in said
    assert serving(uri) is None and reconcile(uri, ledger, MODEL) == []


def test_a_rollback_stays(uri: str, ledger: Ledger) -> None:
    """Fault (d): the next run undid a row `rollback`."""
    for action, version in [("promote", "1"), ("promote", "2"), ("rollback", "1")]:
        record(ledger, action, version, because="2 misses cars" if action == "rollback" else "")
        reconcile(uri, ledger, MODEL)
    assert (serving(uri), ledger.begin(MODEL).champion) == ("1", "1")
    assert reconcile(uri, ledger, MODEL) == [] and serving(uri) == "1"


@pytest.mark.parametrize("point", ["before alias", "after alias"])
def test_a_kill_after_a_strangers_move_was_recorded_records_it_once(
    uri: str, ledger: Ledger, stop_at: Callable[[str], None], point: str
) -> None:
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    set_alias(uri, MODEL, "champion", "3")
    stop_at(point)
    with pytest.raises(Stopped):
        reconcile(uri, ledger, MODEL)
    assert reconcile(uri, ledger, MODEL) == []
    assert serving(uri) == "1" and actions(ledger) == ["promote", "alias"]


def test_yesterdays_database_moves_nothing(uri: str, ledger: Ledger, tmp_path: Path) -> None:
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    yesterday = (tmp_path / "ledger.db").read_bytes()
    record(ledger, "promote", "2")
    reconcile(uri, ledger, MODEL)
    (tmp_path / "ledger.db").write_bytes(yesterday)
    with pytest.raises(
        LedgerError, match=r"knows row 2, and the database ends with row 1: .* an old copy was restored"
    ):
        reconcile(uri, ledger, MODEL)
    assert serving(uri) == "2"
    row = adopt(uri, ledger, MODEL, "the disk broke")
    assert (row.number, row.champion, row.previous, serving(uri)) == (2, "2", "1", "2")
    assert reconcile(uri, ledger, MODEL) == []

    (tmp_path / "ledger.db").unlink()
    with pytest.raises(LedgerError, match=r"the ledger of segmill-brain at .* was lost or replaced; restore it, or"):
        reconcile(uri, ledger, MODEL)


def test_a_ledger_that_was_moved_says_where_it_is_with_its_next_row(uri: str, ledger: Ledger, tmp_path: Path) -> None:
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    (tmp_path / "ledger.db").rename(tmp_path / "moved.db")
    moved = ledger_at(tmp_path / "moved.db")
    record(moved, "promote", "2")
    assert reconcile(uri, moved, MODEL) == [] and serving(uri) == "2"
    assert MlflowClient(uri).get_registered_model(MODEL).tags["ledger_address"] == moved.address


def test_rows_that_are_not_to_be_believed_move_nothing(uri: str, ledger: Ledger, tmp_path: Path) -> None:
    record(ledger, "promote", "1")
    stranger = ledger_at(tmp_path / "ledger.db", key=key_of("mallory"))
    with pytest.raises(LedgerError, match="row 1 of segmill-brain is not to be believed"):
        reconcile(uri, stranger, MODEL)
    assert serving(uri) is None


def test_who_serves_stays_when_an_earlier_releases_ledger_is_taken_over(
    uri: str, ledger: Ledger, tmp_path: Path
) -> None:
    """An earlier release took the alias for the truth, and to move it by hand was the only way back."""
    write_earlier(tmp_path / "ledger.db", ("promote", "1", None, "PASS"), ("promote", "2", "1", "PASS"))
    set_alias(uri, MODEL, "champion", "2")
    assert reconcile(uri, ledger, MODEL) == [] and actions(ledger) == ["promote", "promote"]
    set_alias(uri, MODEL, "champion", "1")
    (said,) = reconcile(uri, ledger, MODEL)
    assert said.startswith("version 1 of segmill-brain was champion in MLflow before this ledger signed the last row")
    assert [(row.action, row.champion) for row in ledger.rows(MODEL)][-2:] == [("promote", "2"), ("adopt", "1")]
    assert serving(uri) == "1" and ledger.verify(MODEL) == []


def test_an_alias_that_was_there_before_any_row_stays(uri: str, ledger: Ledger) -> None:
    set_alias(uri, MODEL, "champion", "3")
    (said,) = reconcile(uri, ledger, MODEL)
    assert said == "version 3 of segmill-brain was champion in MLflow before this ledger signed any row; it stays"
    assert actions(ledger) == ["adopt"] and serving(uri) == "3" and reconcile(uri, ledger, MODEL) == []


def test_a_champion_that_was_deleted_is_said(uri: str, ledger: Ledger) -> None:
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    MlflowClient(uri).delete_model_version(MODEL, "1")
    with pytest.raises(LedgerError, match=r"version 1 of .*, the champion by row 2 .* not in MLflow any more"):
        reconcile(uri, ledger, MODEL)


def test_a_model_that_mlflow_does_not_have_is_left_alone(uri: str, ledger: Ledger) -> None:
    ledger.append(ledger.begin("segmill-none"), Entry(action="promote", version="1"))
    assert reconcile(uri, ledger, "segmill-none") == []
