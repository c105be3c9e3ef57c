"""An earlier verdict holds only for the same champion and the same settings of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segmill.params import PromotionParams
from segmill.promotion import earlier_ledger as ledger
from segmill.workspace import Workspace
from tasks.promote import _replaced_by, earlier_judgement, ledger_url
from tasks.register import Registered

MODEL = "segmill-street"
SETTINGS = {"floor_miou": 0.5, "min_gain": 0.0, "confidence": 0.95}


def wrote(workspace: Workspace, action: str, version: str, previous: str | None, **facts: Any) -> None:
    decision = {"promote": "PASS", "refuse": "FAIL"}.get(action)
    book = ledger_url(workspace)
    entry = ledger.EarlierEntry(
        action, MODEL, version, previous, decision, ["a reason"], {"challenger_miou": 0.6, **facts}
    )
    ledger.append(book, entry, after=ledger.last_number(book, MODEL))


def known(workspace: Workspace, version: str, champion: str | None, **changed: float) -> str | None:
    found = earlier_judgement(workspace, Registered(MODEL, version), champion, PromotionParams(**SETTINGS | changed))
    return found.outcome if found else None


def compared_with(workspace: Workspace, version: str, champion: str) -> tuple[str | None, bool]:
    found = earlier_judgement(workspace, Registered(MODEL, version), champion, PromotionParams(**SETTINGS))
    assert found is not None
    return found.rival, found.rival_serves


@pytest.mark.parametrize("changed", [{"floor_miou": 0.4}, {"min_gain": 0.01}, {"confidence": 0.9}])
def test_a_changed_setting_asks_for_a_new_verdict(tmp_path: Path, changed: dict[str, float]) -> None:
    workspace = Workspace(tmp_path)
    wrote(workspace, "promote", "1", None, floor_miou=0.5)
    wrote(workspace, "refuse", "2", "1", **SETTINGS)
    assert known(workspace, "2", "1") == f"version 2 of {MODEL} was not promoted; version 1 stays the champion"
    assert known(workspace, "2", "1", **changed) is None
    assert compared_with(workspace, "2", "1") == ("1", True)
    assert compared_with(workspace, "1", "1") == (None, False), "the first"


def test_without_a_champion_only_the_floor_decided(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    wrote(workspace, "promote", "1", None, floor_miou=0.5)
    assert known(workspace, "1", "1", min_gain=0.01, confidence=0.9) == f"version 1 of {MODEL} is the champion now"
    assert known(workspace, "1", "1", floor_miou=0.99) is None


def test_another_champion_asks_for_a_new_verdict(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    wrote(workspace, "refuse", "2", "1", **SETTINGS)
    assert known(workspace, "2", "3") is None


def test_a_champion_that_fails_under_new_settings_goes_on_serving(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    wrote(workspace, "promote", "1", None, floor_miou=0.5)
    wrote(workspace, "promote", "2", "1", **SETTINGS)
    wrote(workspace, "refuse", "2", "2", **SETTINGS | {"floor_miou": 0.99})
    outcome = known(workspace, "2", "2", floor_miou=0.99)
    assert outcome == (
        f"version 2 of {MODEL} does not pass under these settings; it stays the champion until another version passes"
    )
    wrote(workspace, "promote", "2", "2", **SETTINGS)
    assert known(workspace, "2", "2") == f"version 2 of {MODEL} passes under these settings; it stays the champion"
    assert _replaced_by(workspace, Registered(MODEL, "2")) == "1", "whom it is judged against"
    assert compared_with(workspace, "2", "2") == ("1", False), "the former champion"
    assert _replaced_by(workspace, Registered(MODEL, "1")) is None
