"""DVC's remote fails while a clone publishes: a bucket that answers 500 or slowly, a disk that is full."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import boto3
import pytest
from disks import small_disk
from doors import State, door_before, failing
from sources import git, lasting

from flows.source import open_source, publish_results
from segmill.data.versioning.publishing import push_stages
from segmill.data.versioning.repository import commit_contents, git_head
from segmill.errors import InfrastructureError
from segmill.params import read_params
from segmill.workspace import Workspace
from tasks.stage import bring_up_to_date
from tasks.version import version

pytestmark = pytest.mark.slow
PROMISED_S = 60


def run_light_stages(author: Workspace, folder: Path, remote: str) -> Workspace:
    """Return a clone in which light stages ran, and the commit of that, which was not published."""
    stores = lasting(author, folder, remote)
    clone = open_source(str(stores.bare), folder / "clone")
    params = read_params(clone.params)
    version(clone, params)
    for stage in ("fingerprint", "validate", "prepare", "augment"):
        bring_up_to_date(clone, stage, params)
    onto = git_head(clone.root)
    assert onto
    commit_contents(clone.root, {"dvc.lock": (clone.root / "dvc.lock").read_bytes()}, "a run", onto=onto)
    return clone


def assert_all_is_published(clone: Workspace, bare: Path) -> None:
    assert "a run" in git(bare, "log", "--format=%s", "main").splitlines()
    assert push_stages(clone.root) == 0, "the remote has all that dvc.lock names"


@pytest.mark.fault
@pytest.mark.parametrize(("state", "for_s"), [("slow", 0.0), ("500", 3.0)])
def test_a_bucket_that_is_slow_or_fails_for_seconds_only_delays_a_run(
    state: State,
    for_s: float,
    workspace: Workspace,
    tmp_path: Path,
    credentials: None,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boto3.client("s3").create_bucket(Bucket=f"fails-{state}")
    with door_before(s3, slow_s=0.3) as door:
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.url)
        failing_meanwhile = threading.Thread(target=failing, args=(door, state, for_s))
        failing_meanwhile.start()
        clone = run_light_stages(workspace, tmp_path, f"s3://fails-{state}/segmill")
        failing_meanwhile.join()
        publish_results(clone)
        assert_all_is_published(clone, tmp_path / "source.git")


@pytest.mark.long
def test_a_bucket_that_answers_500_ends_a_run_in_time_and_gets_all_later(
    workspace: Workspace, tmp_path: Path, credentials: None, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3").create_bucket(Bucket="fails")
    with door_before(s3) as door:
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.url)
        clone = run_light_stages(workspace, tmp_path, "s3://fails/segmill")
        door.set("500")
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match=r"s3://fails/segmill does not answer .*Internal Server Error"):
            publish_results(clone)
        assert time.monotonic() - began < PROMISED_S
        assert "a run" not in git(tmp_path / "source.git", "log", "--format=%s", "main").splitlines()
        door.set("open")
        publish_results(clone)
        assert_all_is_published(clone, tmp_path / "source.git")


@pytest.mark.long
def test_a_remote_whose_disk_is_full_is_named_and_gets_all_later(workspace: Workspace, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        clone = run_light_stages(workspace, tmp_path, str(disk.folder / "remote"))
        shutil.rmtree(disk.folder / "remote" / "runs")
        disk.fill()
        with pytest.raises(InfrastructureError, match="No space left on device"):
            publish_results(clone)
        assert "a run" not in git(tmp_path / "source.git", "log", "--format=%s", "main").splitlines()
        disk.make_room()
        publish_results(clone)
        assert_all_is_published(clone, tmp_path / "source.git")
