from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmill.data.versions import bring_data, create_repository, data_changed, git_commit, recorded_version
from segmill.errors import InfrastructureError, InputError
from segmill.workspace import Workspace


def raw(workspace: Workspace) -> Path:
    return workspace.root / "data" / "raw"


def test_new_data_becomes_a_version_and_stays_one(workspace: Workspace) -> None:
    assert recorded_version(workspace.root, "data/raw") is None
    assert data_changed(workspace.root, "data/raw") == "never added"
    first = bring_data(workspace.root, "data/raw", ".dvc-remote")
    assert (first.state, first.files, len(first.md5)) == ("added", 161, 32)
    again = bring_data(workspace.root, "data/raw", ".dvc-remote")
    assert (again.state, again.md5) == ("unchanged", first.md5)
    assert data_changed(workspace.root, "data/raw") == ""


def test_changed_data_becomes_another_version(workspace: Workspace) -> None:
    first = bring_data(workspace.root, "data/raw", ".dvc-remote")
    next((raw(workspace) / "images").glob("*.png")).unlink()
    assert data_changed(workspace.root, "data/raw") == "files changed"
    second = bring_data(workspace.root, "data/raw", ".dvc-remote")
    assert second.state == "changed"
    assert (second.files, second.md5 != first.md5) == (160, True)


def test_lost_data_comes_back_from_the_remote_alone(workspace: Workspace) -> None:
    first = bring_data(workspace.root, "data/raw", ".dvc-remote")
    shutil.rmtree(raw(workspace))
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    assert data_changed(workspace.root, "data/raw") == "files are missing"
    back = bring_data(workspace.root, "data/raw", ".dvc-remote")
    assert (back.state, back.md5) == ("restored", first.md5)
    assert len(list((raw(workspace) / "masks").iterdir())) == 80


def test_data_that_is_nowhere_is_said_with_what_to_do(workspace: Workspace) -> None:
    bring_data(workspace.root, "data/raw", ".dvc-remote")
    for lost in (raw(workspace), workspace.root / ".dvc" / "cache", workspace.root / ".dvc-remote"):
        shutil.rmtree(lost)
    with pytest.raises(InfrastructureError, match=r"neither the cache nor the remote .dvc-remote"):
        bring_data(workspace.root, "data/raw", ".dvc-remote")


def test_an_empty_workspace_says_where_the_data_goes(tmp_path: Path) -> None:
    create_repository(tmp_path)
    with pytest.raises(InputError, match=r"put the labelled set there"):
        bring_data(tmp_path, "data/raw", None)


def test_the_commit_is_told_and_whether_files_differ(workspace: Workspace, tmp_path: Path) -> None:
    commit = git_commit(workspace.root)
    assert len(commit) == 40
    with workspace.params.open("a") as params:
        params.write("\n")
    assert git_commit(workspace.root) == f"{commit}-dirty"
    assert git_commit(tmp_path.parent) == "none"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 API on loopback: moto's server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                assert time.monotonic() < until, "moto did not start"
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def test_versions_live_on_s3_with_credentials_from_the_environment(workspace: Workspace, credentials: None) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket="labels")
    first = bring_data(workspace.root, "data/raw", "s3://labels/street")
    shutil.rmtree(raw(workspace))
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    assert bring_data(workspace.root, "data/raw", "s3://labels/street").md5 == first.md5
    assert not any(b"secret" in path.read_bytes() for path in (workspace.root / ".dvc").glob("config*"))


def test_a_remote_that_does_not_answer_is_said_and_the_version_is_kept(workspace: Workspace, credentials: None) -> None:
    with pytest.raises(InfrastructureError, match="safe in the local cache but could not be pushed to s3://absent"):
        bring_data(workspace.root, "data/raw", "s3://absent/street")
    assert recorded_version(workspace.root, "data/raw") is not None
    assert (workspace.root / ".dvc" / "cache").is_dir()
