"""What git names, of real repositories: in every commit, at every tip, and whether a clone knows all of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from segmill.data.versioning.git_contents import at_every_tip, every_version, files_like, incomplete
from segmill.data.versioning.repository import commit_files, create_repository


def test_what_git_names_in_every_commit_and_at_every_tip(tmp_path: Path) -> None:
    root = tmp_path / "own"
    create_repository(root)

    def git(*arguments: str) -> None:
        own = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(root), *own, *arguments], check=True, capture_output=True)

    def commit(text: str) -> None:
        (root / "data").mkdir(exist_ok=True)
        (root / "data" / "raw.dvc").write_text(text)
        (root / "dvc.lock").write_text(text)
        commit_files(root, text)

    for text in ("one", "two"):
        commit(text)
    git("checkout", "-q", "-b", "side", "HEAD~1")
    commit("three")
    git("checkout", "-q", "main")
    git("merge", "-q", "-s", "ours", "side")  # its contents are in no tree of main
    git("branch", "-q", "-D", "side")
    git("tag", "first", "HEAD~1")
    commit("lost")
    git("reset", "-q", "--hard", "HEAD~1")
    assert set(every_version(root, "**/*.dvc")) == {b"one", b"two", b"three", b"lost"}
    assert set(at_every_tip(root, "dvc.lock")) == {b"two"}
    commit("last")
    assert set(at_every_tip(root, "dvc.lock")) == {b"two", b"last"} and at_every_tip(root, "nothing") == []
    (root / "new.dvc").write_text("not yet committed")
    assert [path.name for path in files_like(root, "**/*.dvc")] == ["raw.dvc", "new.dvc"]


def test_a_clone_says_that_it_does_not_know_all(tmp_path: Path) -> None:
    root = tmp_path / "own"
    create_repository(root)
    for text in ("one", "two"):
        (root / "note").write_text(text)
        commit_files(root, text)
    for name, options in (("whole", []), ("shallow", ["--depth", "1"])):
        subprocess.run(["git", "clone", "-q", *options, root.as_uri(), str(tmp_path / name)], check=True)
    assert incomplete(tmp_path / "whole") == "" and incomplete(root) == ""
    assert "git fetch --unshallow" in incomplete(tmp_path / "shallow")
    (root / "note").write_text("three")
    commit_files(root, "three")
    assert "has commits that are not here; `git fetch origin`" in incomplete(tmp_path / "whole")
    subprocess.run(["git", "-C", str(tmp_path / "whole"), "remote", "set-url", "origin", "/nowhere"], check=True)
    assert "does not answer" in incomplete(tmp_path / "whole")
