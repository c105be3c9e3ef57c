"""`segmill deploy` without a Prefect server: what it refuses, and that a pushed version is in the source."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sources import git, lasting
from terminal import run, run_json

from segmill.data.versioning.repository import commit_files
from segmill.data.versioning.versions import recorded_version
from segmill.params_change import set_params
from segmill.workspace import Workspace


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    folder = tmp_path / "stores"
    folder.mkdir()
    return folder


@pytest.mark.long
def test_without_a_server_it_says_which_key_names_one(workspace: Workspace) -> None:
    assert "no Prefect server is named; set prefect.api_url" in run(workspace, "segmill", "deploy", code=1)
    assert "exclude each other" in run(workspace, "segmill", "deploy", "--pause", "--remove", code=1)


def test_a_source_whose_stores_would_be_lost_is_refused_with_each_key(workspace: Workspace, stores: Path) -> None:
    bare = stores / "source.git"
    git(stores, "init", "-q", "--bare", "-b", "main", str(bare))
    set_params(workspace.params, [f"schedule.source={bare}"])
    commit_files(workspace.root, "a schedule")
    git(workspace.root, "push", "-q", str(bare), "HEAD:main")
    said = run(workspace, "segmill", "deploy", code=1)
    for key in ("data.remote", "mlflow.tracking_uri", "promotion.ledger_url"):
        assert f"{key}" in said, said
    assert "would be lost" in said
    lasting(workspace, stores)
    git(workspace.root, "push", "-q", str(bare), "HEAD:main")
    assert "no Prefect server is named" in run(workspace, "segmill", "deploy", code=1), (
        "that is the next thing it needs"
    )


@pytest.mark.long
def test_an_address_that_no_variable_holds_is_refused(workspace: Workspace) -> None:
    set_params(workspace.params, ["schedule.alarms=[{url_env: NOBODY_SET_THIS}]"])
    said = run(workspace, "segmill", "deploy", code=1)
    assert "the environment variable NOBODY_SET_THIS of schedule.alarms holds no address" in said
    set_params(workspace.params, ["schedule.alarms=[]", "schedule.cron=at night"])
    assert "schedule.cron is 'at night', which is no cron expression" in run(workspace, "segmill", "deploy", code=1)


@pytest.mark.long
def test_a_version_is_pushed_with_its_record_and_log_and_nothing_else(
    workspace: Workspace, street: Path, stores: Path, tmp_path: Path
) -> None:
    assert "has no remote" in run(workspace, "segmill", "data", "push", code=1)
    bare = lasting(workspace, stores).bare
    git(workspace.root, "remote", "add", "origin", str(bare))
    git(workspace.root, "push", "-q", "-u", "origin", "main")
    assert run_json(workspace, "segmill", "data", "push")["pushed"] is False
    shutil.copytree(street, tmp_path / "more")
    for path in (tmp_path / "more").glob("*/street_s0000_f00.png"):
        path.rename(path.with_name("street_s0099_f00.png"))
    assert "segmill data push" in run(workspace, "segmill", "data", "add", str(tmp_path / "more"), "-m", "rain")
    workspace.params.write_text(workspace.params.read_text() + "# not yet\n")
    pushed = run_json(workspace, "segmill", "data", "push")
    recorded = recorded_version(workspace.root, "data/raw")
    assert recorded and pushed == {"version": recorded.md5, "pushed": True}
    changed = git(bare, "show", "--name-only", "--format=%s", "main").splitlines()
    assert changed == ["Data: rain", "", "data/history.jsonl", "data/raw.dvc"]
    assert "nothing to push" in run(workspace, "segmill", "data", "push")
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(bare), str(other))
    (other / "note").write_text("a colleague's")
    commit_files(other, "a note")
    git(other, "push", "-q")
    (workspace.root / "note").write_text("another")
    commit_files(workspace.root, "another note")
    assert "`git pull --rebase`, then again" in run(workspace, "segmill", "data", "push", code=1)
