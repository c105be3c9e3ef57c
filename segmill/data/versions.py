"""Versions of the labelled set: DVC hashes the folder, keeps its bytes and sends them to the remote."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segmill.errors import InfrastructureError, InputError

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE_NAME = "segmill"


@dataclass(frozen=True)
class DataVersion:
    """One state of the set: DVC's md5 of the folder (32 hex digits), its files and bytes, and how it came here."""

    md5: str
    files: int
    size_bytes: int
    state: Literal["unchanged", "added", "restored", "changed"]


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


def recorded_version(root: Path, path: str) -> DataVersion | None:
    """Return the version that ``PATH.dvc`` records, or None where the set was never added. Reads one small file."""
    from ruamel.yaml import YAML

    record = root / f"{path}.dvc"
    if not record.is_file():
        return None
    (out,) = YAML(typ="safe").load(record.read_text())["outs"]
    return DataVersion(out["md5"].removesuffix(".dir"), out.get("nfiles", 1), out["size"], "unchanged")


def data_changed(root: Path, path: str) -> str:
    """Say in what way the set differs from its recorded version; "" where it does not."""
    recorded = recorded_version(root, path)
    if recorded is None:
        return "never added"
    with repository(root) as repo:
        stage = repo.stage.load_one(str(root / f"{path}.dvc"))
        if not stage.changed():
            return ""
        return "files changed" if (root / path).exists() else "files are missing"


def bring_data(root: Path, path: str, remote: str | None) -> DataVersion:
    """Make the set and its recorded version agree, then push to the remote what that lacks.

    A missing set is restored from the cache or the remote; a new or changed one becomes a new version.

    Args:
        root: the workspace.
        path: the set's folder, relative to ``root``.
        remote: a folder, or ``s3://bucket/prefix`` (credentials from AWS's own environment variables);
            None keeps whatever default remote the repository has.

    Raises:
        InputError: there is neither data nor a version of it.
        InfrastructureError: the remote did not answer, or lacks the version.
    """
    from dvc.exceptions import DvcException

    folder = root / path
    state: Literal["unchanged", "added", "restored", "changed"] = "unchanged"
    with repository(root) as repo:
        _use_remote(repo, remote)
        if recorded_version(root, path) is None:
            if not folder.is_dir():
                raise InputError(
                    f"{folder} is not there and no version of it is recorded; put the labelled set there "
                    "(images/, masks/, dataset.yaml), or name its folder in data.path of params.yaml"
                )
            repo.add(str(folder))
            state = "added"
        elif not folder.exists():
            _restore(repo, str(root / f"{path}.dvc"), remote)
            state = "restored"
        elif repo.stage.load_one(str(root / f"{path}.dvc")).changed():
            repo.add(str(folder))
            state = "changed"
        if repo.config["core"].get("remote"):
            try:
                repo.push(str(root / f"{path}.dvc"))
            except (DvcException, OSError) as error:
                raise InfrastructureError(
                    f"the new data version is safe in the local cache but could not be pushed to {remote}: {error}; "
                    "mend the remote (data.remote in params.yaml) and run again"
                ) from error
    version = recorded_version(root, path)
    assert version is not None, "dvc add leaves a record"
    return DataVersion(version.md5, version.files, version.size_bytes, state)


def _use_remote(repo: Repo, url: str | None) -> None:
    if url is None:
        return
    if "://" not in url:
        url = str((Path(repo.root_dir) / url).resolve())
    remote: dict[str, Any] = repo.config["remote"].get(REMOTE_NAME, {})
    if remote.get("url") == url and repo.config["core"].get("remote") == REMOTE_NAME:
        return
    with repo.config.edit("local") as config:
        config["remote"][REMOTE_NAME] = {"url": url}
        config["core"]["remote"] = REMOTE_NAME


def _restore(repo: Repo, target: str, remote: str | None) -> None:
    from dvc.exceptions import CheckoutError, DvcException

    try:
        repo.checkout(target)
        return
    except CheckoutError:
        pass
    try:
        repo.pull(target)
    except (DvcException, OSError) as error:
        raise InfrastructureError(
            f"the files of {target} are in neither the cache nor the remote {remote}: {error}; "
            "check data.remote in params.yaml and its credentials, or put the files back"
        ) from error


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise InputError("git is not installed; install it, DVC keeps its records in git") from None
    except subprocess.CalledProcessError as error:
        raise InputError(f"git {arguments[0]} failed in {root}: {error.stderr.strip()}") from None
    return done.stdout.strip()
