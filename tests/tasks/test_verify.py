"""What `segmill verify --quick` looks at: hashes, signatures and ledger, each of them also changed by somebody."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registering import NAME, Registered

from segmill.errors import InputError
from segmill.params import Params, SplitParams, read_params
from segmill.promotion import passport, registry, signing
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.passport import WeightsOrigin
from segmill.promotion.rows import Entry
from segmill.promotion.verify import Check
from segmill.workspace import Workspace
from tasks.verify import Subject, _settings, _sources, fetch, look_at_hashes, look_at_ledger
from tests.promotion.test_passport import made

REASONS, FACTS = ["It is better."], {"gain": 0.1}


@pytest.fixture
def params(workspace: Workspace) -> Params:
    return read_params(workspace.params)


@pytest.fixture
def issued(registered: Registered, workspace: Workspace, tmp_path: Path) -> Iterator[Path]:
    """The folder of the passport of version 1 in the store; the ledger's row 1 is its verdict."""
    book = workspace_ledger(workspace.root)
    entry = Entry(action="promote", version="1", decision="PASS", reasons=REASONS, facts=FACTS)
    row = book.append(book.begin(NAME), entry)
    known = registry.read_version(registered.uri, NAME, "1")
    report, folder = tmp_path / "index.html", tmp_path / "papers"
    report.write_text("<p>the report")
    folder.mkdir()
    verdict = made().verdict.model_copy(
        update={"ledger": passport.VerdictRow(number=1, hash=row.hash), "reasons": REASONS, "facts": FACTS}
    )
    own = made(
        run_id=known.run_id, registered_by=known.run_id, verdict=verdict,
        ensemble_sha256=known.tags[registry.DIGEST_TAG], manifest_sha256=passport.manifest_of(known.tags),
        report_sha256=hashlib.sha256(report.read_bytes()).hexdigest(),
    )  # fmt: skip
    passport.issue(own, report, registered.key, folder)
    passport.store(registered.uri, folder, model=NAME, version="1")
    yield registered.folder / passport.FOLDER
    for path in (registered.folder / passport.FOLDER).iterdir():
        path.unlink()


def fetched(workspace: Workspace, registered: Registered, tmp_path: Path) -> Subject:
    return fetch(workspace, registered.uri, NAME, "1", tmp_path / "subject")


def states(checks: Iterator[Check]) -> dict[str, str]:
    return {check.what: check.state for check in checks}


def edit(path: Path, **own: Any) -> None:
    """Change values of a JSON file at its top."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))


def test_what_nobody_changed_agrees(
    issued: Path, registered: Registered, workspace: Workspace, params: Params, tmp_path: Path
) -> None:
    subject = fetched(workspace, registered, tmp_path)
    assert subject.files is not None and (subject.files / "MLmodel").is_file()
    checks = [*look_at_hashes(subject), *look_at_ledger(workspace, params, subject)]
    assert {check.state for check in checks} == {"agrees"}, checks
    assert {check.part for check in checks} == {"passport", "version", "ledger"}
    assert registered.key.public.id in checks[0].says


def test_an_edited_passport_and_an_edited_report_are_found(
    issued: Path, registered: Registered, workspace: Workspace, tmp_path: Path
) -> None:
    edit(issued / passport.JSON, ensemble_sha256="0" * 64)
    (issued / passport.HTML).write_text("<p>a better report")
    checks = list(look_at_hashes(fetched(workspace, registered, tmp_path)))
    wrong = {check.what: check.says for check in checks if check.state == "differs"}
    assert set(wrong) == {"signature of the passport", "ensemble", "report"}
    assert "was changed" in wrong["signature of the passport"]
    assert wrong["ensemble"].startswith("recorded 000000000000, here ")


def test_a_passport_signed_by_another_key_is_found(
    issued: Path, registered: Registered, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segmill.promotion.keys import make_signing_key

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody"))
    said = passport.parse((issued / passport.JSON).read_bytes())
    passport.issue(said, issued / passport.HTML, make_signing_key(), issued)
    checks = list(look_at_hashes(fetched(workspace, registered, tmp_path)))
    assert [check.what for check in checks if check.state == "differs"] == ["signature of the passport"]
    assert "does not list" in checks[0].says


def test_changed_weights_are_found_and_a_lost_file_too(
    issued: Path, registered: Registered, workspace: Workspace, tmp_path: Path
) -> None:
    weights = next((registered.folder / signing.ENSEMBLE).rglob("weights.safetensors"))
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        subject = fetched(workspace, registered, tmp_path)
        found = {check.what: check for check in look_at_hashes(subject)}
        assert subject.files is None
        assert found["files of the version"].state == "differs" and weights.name in found["files of the version"].says
        assert "ensemble" not in found, "nothing is read from files that are not as they were signed"
    finally:
        weights.write_bytes(kept)


def test_a_ledger_that_was_changed_or_is_another_is_found(
    issued: Path, registered: Registered, workspace: Workspace, params: Params, tmp_path: Path
) -> None:
    subject = fetched(workspace, registered, tmp_path)
    with sqlite3.connect(workspace.ledger) as database:
        (text,) = database.execute("SELECT payload FROM ledger_rows").fetchone()
        database.execute("UPDATE ledger_rows SET payload = ?", (text.replace("0.1", "0.9"),))
    found = list(look_at_ledger(workspace, params, subject))
    assert [check.state for check in found] == ["differs", "agrees", "differs"]
    assert "its content was changed after it was written" in found[0].says
    workspace.ledger.unlink()
    (only,) = look_at_ledger(workspace, params, subject)
    assert only.state == "unknown" and "promotion.ledger_url" in only.says and not workspace.ledger.exists()


def test_weights_are_held_against_their_source_where_that_is_here(
    issued: Path, registered: Registered, workspace: Workspace, tmp_path: Path
) -> None:
    own = next((registered.folder / signing.ENSEMBLE).rglob("small/weights.safetensors"))
    file = tmp_path / "start.safetensors"
    file.write_bytes(b"weights")
    sha256 = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (own, file)}
    weights = {
        "small": WeightsOrigin(source=f"champion:{NAME}/1", sha256=sha256[own]),
        "other": WeightsOrigin(source=f"file:{file}", sha256=sha256[file]),
        "moved": WeightsOrigin(source=f"file:{file}", sha256="0" * 64),
        "gone": WeightsOrigin(source="file:/nowhere.safetensors", sha256="0" * 64),
        "hub": WeightsOrigin(source="timm:a1_in1k", sha256="0" * 64),
        "none": WeightsOrigin(source="none", sha256=None),
    }
    subject = fetched(workspace, registered, tmp_path)
    subject = replace(subject, passport=subject.passport.model_copy(update={"weights": weights}))
    found = {check.what.rpartition(" ")[2]: check for check in _sources(subject)}
    assert {name: check.state for name, check in found.items()} == {
        "small": "agrees", "other": "agrees", "moved": "differs", "gone": "unknown", "hub": "unknown"
    }  # fmt: skip
    assert "/nowhere.safetensors" in found["gone"].says and "nothing is downloaded" in found["hub"].says


def test_a_version_without_a_passport_says_what_helps(
    registered: Registered, workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"has no passport: .*; `segmill retrain` issues one"):
        fetched(workspace, registered, tmp_path)


def test_settings_of_another_release_are_said_to_be_unreadable() -> None:
    assert _settings(SplitParams, {"val": 0.1, "test": 0.2, "seed": 3}).seed == 3
    with pytest.raises(InputError, match=r"can't read the recorded settings \(SplitParams: rule\)"):
        _settings(SplitParams, {"val": 0.1, "test": 0.2, "seed": 3, "rule": "by day"})


def test_the_policy_of_a_passport_holds_no_address_of_the_ledger(params: Params) -> None:
    from tasks.passport import policy_of

    named = params.promotion.model_copy(update={"ledger_url": "postgresql://me:secret@db/ledger"})
    found = policy_of(params.model_copy(update={"promotion": named}))
    assert "secret" not in json.dumps(found) and found["alpha"] == params.promotion.alpha
