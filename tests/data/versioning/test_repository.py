from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from segmill.data.versioning.repository import commit_files, create_repository, git_commit, who_works


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
