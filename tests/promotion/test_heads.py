"""The ledger's last row is kept in MLflow's tags, in the workspace and in git, and each of them can tell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from ledgers import MODEL, ledger_at, record
from mlflow import MlflowClient

from segmill.data.versioning.repository import commit_files, create_repository
from segmill.promotion.heads import FILE, examine, in_workspace, write_file
from segmill.promotion.identity import actor
from segmill.promotion.ledger import Ledger
from segmill.promotion.reconcile import reconcile

NO_MLFLOW = "sqlite:////nowhere/mlflow.db"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository that commits runs, with a file of somebody who works in it."""
    root = tmp_path / "workspace"
    create_repository(root)
    (root / "params.yaml").write_text("one")
    commit_files(root, "begun")
    (root / "params.yaml").write_text("not committed")
    return root


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledger_at(tmp_path / "ledger.db")


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_the_file_has_the_last_row_of_each_model_and_is_committed_alone(root: Path, ledger: Ledger) -> None:
    for model, version in [(MODEL, "1"), ("segmill-street", "7"), (MODEL, "2")]:
        row = record(ledger, "promote", version, model=model)
        write_file(root, row, ledger.named(), commit=True)
    write_file(root, row, ledger.named(), commit=True)
    heads = json.loads((root / FILE).read_text())["heads"]
    assert (heads[MODEL]["number"], heads["segmill-street"]["number"]) == (2, 1)
    titles = git(root, "log", "--format=%s").splitlines()
    assert titles == [
        "ledger of segmill-brain: row 2, promote 2", "ledger of segmill-street: row 1, promote 7",
        "ledger of segmill-brain: row 1, promote 1", "begun",
    ]  # fmt: skip
    assert (
        git(root, "status", "--porcelain") == "M params.yaml" and git(root, "show", "--format=", "--name-only") == FILE
    )
    assert [(one.number, one.hash) for one in in_workspace(root, MODEL)] == [(2, row.hash)] * 2
    assert examine(NO_MLFLOW, root, ledger, MODEL) == []


def test_nothing_is_committed_where_that_is_not_wanted_or_there_is_no_git(root: Path, ledger: Ledger) -> None:
    row = record(ledger, "promote", "1")
    write_file(root, row, ledger.named(), commit=False)
    assert [one.where for one in in_workspace(root, MODEL)] == [str(root / FILE)]
    elsewhere = root.parent / "no_git"
    elsewhere.mkdir()
    write_file(elsewhere, row, ledger.named(), commit=True)
    assert [one.number for one in in_workspace(elsewhere, MODEL)] == [1]


def test_an_old_copy_of_the_database_is_found_by_each_place_that_keeps_the_head(root: Path, ledger: Ledger) -> None:
    uri, path = f"sqlite:///{root}/mlflow.db", root.parent / "ledger.db"
    client = MlflowClient(uri)
    client.create_registered_model(MODEL)
    for _ in range(2):
        client.create_model_version(MODEL, "models")
    record(ledger, "promote", "1")
    reconcile(uri, ledger, MODEL)
    yesterday = path.read_bytes()
    row = record(ledger, "promote", "2")
    reconcile(uri, ledger, MODEL)
    write_file(root, row, ledger.named(), commit=True)
    assert examine(uri, root, ledger, MODEL) == []

    path.write_bytes(yesterday)
    found = examine(uri, root, ledger, MODEL)
    places = [f"{root / FILE} knows", f"{FILE} in git knows", f"tag ledger_head of {MODEL} knows", "of version 2 of"]
    assert len(found) == 4 and all(place in said for place, said in zip(places, found, strict=True))
    assert all("knows row 2, and the database ends with row 1" in said for said in found)

    (root / FILE).write_text("{}")  # whoever tidies up after himself does so in four places, one of which is git
    client.set_registered_model_tag(MODEL, "ledger_head", "x")
    client.delete_model_version_tag(MODEL, "2", "ledger_head")
    found = examine(uri, root, ledger, MODEL)
    assert [said.partition(" names another ledger")[0] for said in found if "(damaged)" in said] == [
        f"{root / FILE} (damaged)", f"MLflow's tag ledger_head of {MODEL} (damaged)",
    ]  # fmt: skip
    assert any(f"{FILE} in git knows row 2" in said for said in found)

    client.delete_registered_model_tag(MODEL, "ledger_head")
    assert f"MLflow's tag ledger_head of {MODEL} is missing, and row 1 was kept there" in examine(
        uri, root, ledger, MODEL
    )


def test_who_acts_comes_from_git_the_ci_and_the_system(root: Path) -> None:
    git(root, "config", "user.name", "Anna")
    git(root, "config", "user.email", "anna@example.org")
    said = actor(root, {"GITLAB_CI": "true", "GITLAB_USER_LOGIN": "anna", "CI_JOB_URL": "https://ci/jobs/7"})
    assert said["git"] == "Anna <anna@example.org>" and said["user"] and said["host"]
    assert said["ci"] == "GitLab CI GITLAB_USER_LOGIN=anna CI_JOB_URL=https://ci/jobs/7"
    assert actor(root, {"GITHUB_ACTIONS": "true", "GITHUB_ACTOR": "bo"})["ci"] == "GitHub Actions GITHUB_ACTOR=bo"
    jenkins = {"JENKINS_URL": "http://j", "BUILD_URL": "http://u:s3cret@j/job/1"}
    assert actor(root, jenkins)["ci"] == "Jenkins BUILD_URL=http://j/job/1" and "ci" not in actor(root, {})
