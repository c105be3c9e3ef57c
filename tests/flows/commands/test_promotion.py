"""`segmill promote`, `rollback`, `approve`, `reject` with a real registry: checked, recorded and mirrored."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from terminal import BIN, terminal

from flows.environment import tracking_uri
from segmill import tracking
from segmill.data.packing.packed import PackedSplit
from segmill.ensembling.predict import Ensemble
from segmill.params import Params, read_params
from segmill.params_change import set_params
from segmill.promotion import registry
from segmill.promotion.keys import make_signing_key
from segmill.promotion.ledger import Ledger, workspace_ledger
from segmill.promotion.moves import waits
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.workspace import Workspace
from tasks.register import model_name

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(_street_workspace: Workspace, judging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the signed versions 1 and 2, of which 2 was promoted over 1 and serves. Copy it."""
    root = tmp_path_factory.mktemp("registered") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    params = read_params(workspace.params)
    set_up(root)
    uri, name, key = tracking_uri(workspace, params), model_name(workspace, params), make_signing_key()
    run_id = tracking.start_run(uri, name, "retrain", artifacts=(root / "mlartifacts").as_uri())
    image_HWC = PackedSplit(judging / "packed" / "test").image(0)
    for number in (1, 2):
        folder = root.with_name(str(number)) / "ensemble"
        shutil.copytree(judging / "ensemble", folder)
        (folder / "note.txt").write_text(str(number))
        golden = [(image_HWC, Ensemble.load(folder).predict(image_HWC[None])[0])]
        tags = {"test_miou": f"0.{number}", "data_version": "0123"}
        version = registry.register(uri, run_id, folder, name, key=key, tags=tags, golden=golden)
        book = workspace_ledger(root)
        book.append(book.begin(name), Entry(action="promote", version=version, decision="PASS"))
    return root


@pytest.fixture
def workspace(template: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(template, tmp_path / "workspace", symlinks=True)
    return Workspace.open(tmp_path / "workspace")


@pytest.fixture
def params(workspace: Workspace) -> Params:
    return read_params(workspace.params)


def ledger(workspace: Workspace) -> Ledger:
    return workspace_ledger(workspace.root)


def run_segmill(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / "segmill"), *arguments], env=terminal(), capture_output=True, text=True)


def ask(workspace: Workspace, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = run_segmill(*arguments, "--json", "-w", str(workspace.root))
    assert done.returncode == code, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def alias(workspace: Workspace, params: Params) -> str:
    client = MlflowClient(tracking_uri(workspace, params))
    return str(client.get_model_version_by_alias(model_name(workspace, params), "champion").version)


def test_back_with_a_reason(workspace: Workspace, params: Params) -> None:
    said = ask(workspace, "rollback", "--because", "it misses trams")
    assert (said["action"], said["champion"], said["previous"]) == ("rollback", "1", "2")
    assert said["outcome"] == "version 1 of segmill-street is the champion again, by a rollback"
    assert alias(workspace, params) == "1" and said["noticed"] == []
    assert said["seconds"] - said["load_seconds"] < 30, "the rest is no load; benchmarks measure it"
    row = ledger(workspace).rows()[-1]
    assert (row.because, row.facts["golden_differing"]) == ("it misses trams", 0) and row.verifiable


@pytest.mark.long
def test_nothing_is_before_the_first_and_the_second_comes_back(workspace: Workspace, params: Params) -> None:
    assert ask(workspace, "rollback", "--because", "it misses trams")["champion"] == "1"
    said = ask(workspace, "rollback", "--because", "more", code=1)
    assert "is the first champion" in said["error"]
    assert ask(workspace, "promote", "2", "--because", "trams are gone")["action"] == "overrule"
    assert alias(workspace, params) == "2"


def test_a_version_that_was_tampered_with_does_not_come_to_serve(workspace: Workspace, template: Path) -> None:
    one = next(path for path in (template / "mlartifacts").rglob("note.txt") if path.read_text() == "1")
    one.write_text("7")
    said = ask(workspace, "rollback", "--because", "so", code=1)
    one.write_text("1")
    assert "note.txt was changed after it was signed" in said["error"]
    assert len(ledger(workspace).rows()) == 2


@pytest.mark.long
def test_what_waits_is_approved_or_rejected_and_said_by_status(workspace: Workspace, params: Params) -> None:
    set_params(workspace.params, ["promotion.approval=one"])
    said = ask(workspace, "promote", "1", "--because", "a test")
    assert (said["action"], said["champion"]) == ("await", "2")
    assert "version 1 of segmill-street waits for 1 approval until" in said["outcome"]
    status = run_segmill("status", "-w", str(workspace.root)).stdout
    assert "approval      version 1 waits for 1 approval until" in status
    assert ask(workspace, "reject", "--because", "no")["action"] == "reject"
    assert "no version of segmill-street waits" in ask(workspace, "approve", "--because", "yes", code=1)["error"]
    book = ledger(workspace)
    book.append(
        book.begin("segmill-street"), Entry(action="await", version="1", decision="PASS", facts=waits("one", 7))
    )
    assert ask(workspace, "approve", "1", "--because", "yes")["champion"] == "1"
    assert alias(workspace, params) == "1"


def test_a_reason_is_needed(workspace: Workspace) -> None:
    done = run_segmill("rollback", "-w", str(workspace.root))
    assert done.returncode == 2 and "--because" in done.stderr
