"""The search for secrets finds what is planted: in files, over the edge of a piece, in packed commits, in processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from canaries import in_files, watching_processes

CANARIES = {"password": "canary-7f3a", "token": "canary-91bc"}


def test_files_are_searched_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canaries.CHUNK", 16)
    monkeypatch.setattr("canaries.OVERLAP", 12)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text(f"{'x' * 10}canary-7f3a")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("canary-91bc")
    assert in_files(CANARIES, tmp_path, without=[tmp_path / "secrets"]) == {
        f"password in {tmp_path / 'logs' / 'a.log'}"
    }


@pytest.mark.parametrize("packed", [False, True])
def test_commits_are_searched(tmp_path: Path, packed: bool) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "with canary-91bc"], check=True)
    if packed:
        subprocess.run([*git, "gc", "--quiet"], check=True)
    assert "token in a commit of " + str(tmp_path / ".git") in in_files(CANARIES, tmp_path)


def test_processes_are_watched() -> None:
    code = "import time; time.sleep(3)"
    with watching_processes(CANARIES, {"token": ["may-have-it"]}) as found:
        subprocess.run([sys.executable, "-c", code, "canary-7f3a"], env={"A": "canary-91bc"}, check=True)
        subprocess.run([sys.executable, "-c", code, "may-have-it"], env={"A": "canary-91bc"}, check=True)
    assert {one.partition(":")[0].partition(" of ")[0] for one in found} == {
        "password in a command line",
        "token in the environment",
    }
    assert not [one for one in found if "may-have-it" in one]
