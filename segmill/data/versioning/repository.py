"""The git and DVC repository that a workspace is: made, committed, and who works in it."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

from segmill.data.versioning import dvc_adapter
from segmill.errors import InputError


def create_repository(root: Path) -> None:
    """Make ``root`` a git and DVC repository of its own; a second call changes nothing."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ".git").exists():
        _git(root, "init", "-q", "-b", "main")
    if not (root / ".dvc").is_dir():
        dvc_adapter.init(root)


def commit_files(root: Path, message: str) -> None:
    """Commit everything git does not ignore. Works without a git identity: segmill signs then."""
    _git(root, "add", "-A")
    if _git(root, "status", "--porcelain"):
        known = subprocess.run(["git", "-C", str(root), "config", "user.email"], capture_output=True).returncode == 0
        identity = [] if known else ["-c", "user.name=segmill", "-c", "user.email=segmill@localhost"]
        _git(root, *identity, "commit", "-q", "-m", message)


def git_commit(root: Path) -> str:
    """Return the commit that ``root`` is at, with ``-dirty`` where files differ, or "none" outside git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except InputError:
        return "none"
    return f"{commit}-dirty" if dirty else commit


def who_works(root: Path) -> str:
    """Return who is at work here: git's user.name and user.email, else the name the system knows."""
    known = []
    for key in ("user.name", "user.email"):
        done = subprocess.run(["git", "-C", str(root), "config", key], capture_output=True, text=True)
        known.append(done.stdout.strip())
    name, email = known
    if name or email:
        return f"{name} <{email}>" if name and email else name or email
    return getpass.getuser()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise InputError("git is not installed", "install it, DVC keeps its records in git") from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"git {arguments[0]} failed in {root}: {error.stderr.strip()}") from None
    return done.stdout.strip()
