"""The git and DVC repository that a workspace is: made, committed, and who works in it."""

from __future__ import annotations

import errno
import getpass
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from segmill.credentials import without_credentials
from segmill.data.versioning import dvc_adapter
from segmill.errors import InputError

COMMITS_RUNS = "segmill.commitRuns"  # a key of the repository's own git configuration


def create_repository(root: Path) -> None:
    """Make ``root`` a git and DVC repository of its own, where runs are committed; a second call changes nothing."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ".git").exists():
        git(root, "init", "-q", "-b", "main")
        git(root, "config", COMMITS_RUNS, "true")
    if not (root / ".dvc").is_dir():
        dvc_adapter.init(root)


def commit_files(root: Path, message: str) -> None:
    """Commit everything git does not ignore. Works without a git identity: segmill signs then."""
    git(root, "add", "-A")
    if git(root, "status", "--porcelain"):
        git(root, *identity(root), "commit", "-q", "-m", message)


def commits_runs(root: Path) -> bool:
    """Tell whether segmill made this repository, so that its runs may be committed there."""
    return config_value(root, COMMITS_RUNS) == "true"


def config_value(root: Path, key: str) -> str | None:
    """Return what the repository's own git configuration says; None where it says nothing, or is none."""
    asked = ["git", "-C", str(root), "config", "--local", key]
    done = subprocess.run(asked, capture_output=True, text=True, env=_environment())
    return done.stdout.strip() or None


def commit_contents(root: Path, contents: Mapping[str, bytes], message: str, *, onto: str) -> str | None:
    """Commit files with these contents, whatever they hold now and whatever else is staged; return the commit.

    Args:
        contents: by path relative to ``root``.
        onto: the commit that ``root`` was at when the contents were read.

    Returns:
        ``onto`` where it holds them already; None where somebody committed since.
    """
    if git(root, "rev-parse", "HEAD") != onto:
        return None
    tree = write_tree(root, onto, contents)
    if tree == git(root, "rev-parse", f"{onto}^{{tree}}"):
        return onto
    commit = write_commit(root, tree, message, [onto])
    git(root, "update-ref", "-m", f"segmill: {message.splitlines()[0]}", "HEAD", commit, onto)
    git(root, "reset", "-q", "--", *contents)  # else they would be staged as they were before
    return commit


def write_tree(root: Path, onto: str, contents: Mapping[str, bytes]) -> str:
    """Write the tree of the commit ``onto`` with files of these contents, by path relative to ``root``; return it."""
    prefix = git(root, "rev-parse", "--show-prefix")  # the workspace may be a folder of a larger repository
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", onto, environment=index)
        for path, content in contents.items():
            blob = git(root, "hash-object", "-w", "--stdin", stdin=content)
            entry = f"100644,{blob},{prefix}{path}"
            git(root, "update-index", "--add", "--cacheinfo", entry, environment=index)
        return git(root, "write-tree", environment=index)


def write_commit(root: Path, tree: str, message: str, parents: Sequence[str]) -> str:
    """Write a commit of ``tree``, which no branch has yet, and return it."""
    before = [word for parent in parents for word in ("-p", parent)]
    return git(root, *identity(root), "commit-tree", tree, *before, "-m", message)


def git_head(root: Path) -> str | None:
    """Return the commit that ``root`` is at; None outside git, and before the first commit."""
    try:
        return git(root, "rev-parse", "--verify", "-q", "HEAD")
    except InputError:
        return None


def committed(root: Path, path: str, commit: str = "HEAD") -> bytes | None:
    """Return what a commit, the last one, has of a file; None where there is none. ``path``: relative to ``root``."""
    asked = ["git", "-C", str(root), "show", f"{commit}:./{path}"]
    done = subprocess.run(asked, capture_output=True, env=_environment())
    return done.stdout if done.returncode == 0 else None


def identity(root: Path) -> list[str]:
    """Return the options of git that name segmill as the author, where nobody is named."""
    asked = ["git", "-C", str(root), "config", "user.email"]
    known = subprocess.run(asked, capture_output=True, env=_environment()).returncode == 0
    return [] if known else ["-c", "user.name=segmill", "-c", "user.email=segmill@localhost"]


def git_commit(root: Path) -> str:
    """Return the commit that ``root`` is at, with ``-dirty`` where files differ, or "none" outside git."""
    try:
        commit = git(root, "rev-parse", "HEAD")
        dirty = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except InputError:
        return "none"
    return f"{commit}-dirty" if dirty else commit


def who_works(root: Path) -> str:
    """Return who is at work here: git's user.name and user.email, else the name the system knows."""
    return git_user(root) or getpass.getuser()


def git_user(root: Path | None) -> str:
    """Return git's user.name and user.email at ``root`` (None: of the user); "" where neither is known, or no git."""
    where = ["-C", str(root)] if root else []
    try:
        asked = ["git", *where, "config", "--get-regexp", r"^user\.(name|email)$"]
        done = subprocess.run(asked, capture_output=True, text=True, env=_environment())
    except FileNotFoundError:
        return ""
    known = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())  # of several the last one counts
    name, email = known.get("user.name", ""), known.get("user.email", "")
    return f"{name} <{email}>" if name and email else name or email


def git(root: Path, *arguments: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> str:
    """Run git at ``root`` and return what it prints. InputError with what git says where it fails."""
    return git_bytes(root, *arguments, stdin=stdin, environment=environment).decode(errors="surrogateescape").strip()


def git_bytes(root: Path, *arguments: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
    """Run git at ``root`` and return the bytes that it prints. InputError with what git says where it fails.

    A full disk is an OSError.

    ``environment``: variables of its own; of this process's it gets no credentials.
    """
    own = {**_environment(), **(environment or {})}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, input=stdin, check=True, env=own
        )
    except FileNotFoundError:
        raise InputError("git is not installed", "install it, DVC keeps its records in git") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        if os.strerror(errno.ENOSPC) in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from None
        raise InputError(f"git {arguments[0]} failed in {root}: {said}") from None
    return done.stdout


def _environment() -> dict[str, str]:
    """Return git's environment: hooks and filters of a repository are run with it. Git's own variables stay."""
    own = {name: value for name, value in os.environ.items() if name.startswith("GIT_")}
    return {**without_credentials(), **own}
