"""The git and DVC repository that a workspace is: made, opened under lock, committed, and who works in it."""

from __future__ import annotations

import getpass
import logging
import subprocess
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.errors import InputError

if TYPE_CHECKING:
    from dvc.repo import Repo


@contextmanager
def repository(root: Path) -> Iterator[Repo]:
    """Open the DVC repository at ``root``, locked. One per call and thread: a Repo is never shared.

    DVC's run-cache takes "dvc.yaml" from the current folder, so that is ``root`` while the lock is held.

    Raises:
        InputError: ``root`` is no DVC repository.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo, lock_repo

    try:
        repo = Repo(str(root), _wait_for_lock=True)
    except NotDvcRepoError:
        raise InputError(f"{root} is not a DVC repository; run `dvc init` there") from None
    with repo, lock_repo(repo), chdir(root):
        yield repo


def create_repository(root: Path) -> None:
    """Make ``root`` a git and DVC repository of its own; a second call changes nothing."""
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ".git").exists():
        _git(root, "init", "-q", "-b", "main")
    if not (root / ".dvc").is_dir():
        Repo.init(str(root)).close()


def commit_files(root: Path, message: str) -> None:
    """Commit everything git does not ignore. Works without a git identity: segmill signs then."""
    _git(root, "add", "-A")
    if _git(root, "status", "--porcelain"):
        known = subprocess.run(["git", "-C", str(root), "config", "user.email"], capture_output=True).returncode == 0
        identity = [] if known else ["-c", "user.name=segmill", "-c", "user.email=segmill@localhost"]
        _git(root, *identity, "commit", "-q", "-m", message)


def git_commit(root: Path) -> str:
    """Return the commit that ``root`` stands on, with ``-dirty`` where files differ, or "none" outside git."""
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
        raise InputError("git is not installed; install it, DVC keeps its records in git") from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"git {arguments[0]} failed in {root}: {error.stderr.strip()}") from None
    return done.stdout.strip()
