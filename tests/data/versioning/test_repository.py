from __future__ import annotations

import errno
import getpass
import os
import subprocess
from pathlib import Path

import pytest
from disks import small_disk

from segmill.data.versioning.repository import (
    commit_contents,
    commit_files,
    commits_runs,
    committed,
    create_repository,
    git_bytes,
    git_commit,
    who_works,
)


def test_the_commit_is_told_and_whether_files_differ(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "none"
    create_repository(tmp_path / "own")
    (tmp_path / "own" / "note").write_text("one")
    commit_files(tmp_path / "own", "a note")
    commit = git_commit(tmp_path / "own")
    assert len(commit) == 40
    (tmp_path / "own" / "note").write_text("two")
    assert git_commit(tmp_path / "own") == f"{commit}-dirty"


def test_who_works_is_told_by_git_else_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(tmp_path / "none"))
    create_repository(tmp_path)
    assert who_works(tmp_path) == getpass.getuser()
    subprocess.run(["git", "config", "user.name", "Ada"], cwd=tmp_path, check=True)
    assert who_works(tmp_path) == "Ada"
    subprocess.run(["git", "config", "user.email", "ada@localhost"], cwd=tmp_path, check=True)
    assert who_works(tmp_path) == "Ada <ada@localhost>"


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def test_contents_are_committed_whatever_the_files_hold_now_and_nothing_else_is(tmp_path: Path) -> None:
    """In a folder of a larger repository, with something staged and a file edited since."""
    root = tmp_path / "own" / "work"
    create_repository(tmp_path / "own")
    root.mkdir()
    for name in ("params.yaml", "other"):
        (root / name).write_text("one\n")
    commit_files(tmp_path / "own", "first")
    first = git_commit(root)
    (root / "params.yaml").write_text("edited meanwhile\n")
    (root / "other").write_text("staged\n")
    git(root, "add", "other")
    made = commit_contents(root, {"params.yaml": b"two\n", "dvc.lock": b"lock\n"}, "a run\n\nwhy", onto=first)
    assert made is not None and git(root, "rev-parse", "HEAD", "HEAD~").split() == [made, first]
    assert git(root, "show", "--no-patch", "--format=%B", "HEAD").split("\n")[:3] == ["a run", "", "why"]
    assert git(root, "show", "HEAD:work/params.yaml") == "two\n" and git(root, "show", "HEAD:work/other") == "one\n"
    assert sorted(git(root, "status", "--porcelain").splitlines()) == [
        " D work/dvc.lock", " M work/params.yaml", "M  work/other",
    ]  # fmt: skip
    assert (root / "params.yaml").read_text() == "edited meanwhile\n"
    assert committed(root, "params.yaml") == b"two\n" and committed(root, "params.yaml", first) == b"one\n"
    assert committed(root, "dvc.lock", first) is None and committed(root, "params.yaml", "0" * 40) is None
    assert commit_contents(root, {"params.yaml": b"two\n"}, "again", onto=made) == made, "nothing to commit"
    assert commit_contents(root, {"params.yaml": b"three\n"}, "late", onto=first) is None, "somebody committed since"
    assert git_commit(root).removesuffix("-dirty") == made


def test_runs_are_committed_where_segmill_made_the_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "theirs")
    create_repository(tmp_path / "theirs")
    create_repository(tmp_path / "own")
    assert (commits_runs(tmp_path / "theirs"), commits_runs(tmp_path / "own")) == (False, True)


def test_git_and_its_hooks_get_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_repository(tmp_path / "space")
    hook = tmp_path / "space" / ".git" / "hooks" / "pre-commit"
    hook.write_text(f"#!/bin/sh\nenv > {tmp_path / 'seen'}\n")
    hook.chmod(0o755)
    planted = {"AWS_SECRET_ACCESS_KEY": "canary", "RAY_AUTH_TOKEN": "canary", "OPENS_NOTHING": "1"}
    for name, value in {**planted, "GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "ann@localhost"}.items():
        monkeypatch.setenv(name, value)
    commit_files(tmp_path / "space", "first")
    seen = (tmp_path / "seen").read_text()
    assert "canary" not in seen and "OPENS_NOTHING=1" in seen
    assert git(tmp_path / "space", "log", "-1", "--format=%an") == "Ann\n"


def test_a_full_disk_is_no_fault_of_git(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        create_repository(disk.folder / "workspace")
        disk.fill()
        with pytest.raises(OSError, match="No space left on device") as full:
            git_bytes(disk.folder / "workspace", "hash-object", "-w", "--stdin", stdin=os.urandom(10_000))
        assert full.value.errno == errno.ENOSPC and full.value.filename == str(disk.folder / "workspace")
