"""Files that nothing uses any more: old scratch, drafts and temporary folders of dead processes, Ray's sessions."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from segmill.cluster.sessions import sessions_folder
from segmill.orphans import MARK, RUN_FOLDER, temporary_top
from segmill.retention.plan import DAY_S, FoundFile, Removal
from segmill.workspace import Workspace

# Folders of the scratch whose entries are each of one training, study, version or run.
KINDS = {
    "ray": "checkpoints",
    "tuning": "study",
    "tuning/data": "data of a study",
    "audit": "checkpoints of an audit",
    "failures": "values of a loss that was not finite",
    "predictions": "predictions of a version",
    "champion": "champion's member",
    "logs": "log",
}
OURS = "segmill-"  # how the names of our temporary folders begin; a run's own holds its Ray session
DRAFTS = ".*.draft"


def scratch(workspace: Workspace, days: float, now_s: float) -> list[Removal]:
    """Return what the workspace's scratch has that was not written for ``days`` days."""
    found = []
    for name, kind in KINDS.items():
        folder = workspace.scratch / name
        entries = [path for path in _entries(folder) if f"{name}/{path.name}" not in KINDS]
        found += [(path, f"{kind} {path.name}") for path in entries]
    found += [(path, f"copy of an interrupted verify, {path.name}") for path in workspace.scratch.glob("verify-*")]
    return _old("scratch", found, days, now_s)


def drafts(workspace: Workspace, days: float, now_s: float) -> list[Removal]:
    """Return the drafts in the workspace that a process left which died while it wrote."""
    tops = [workspace.scratch, workspace.members.parent, workspace.reports, workspace.root / ".dvc" / "cache"]
    places = [path for top in tops for path in top.rglob(DRAFTS)]
    places += [path for top in (workspace.root, workspace.packed.parent) for path in top.glob(DRAFTS)]
    return _old("scratch", [(path, f"draft {path.name}") for path in places], days, now_s)


def temporary(days: float, now_s: float) -> list[Removal]:
    """Return the temporary folders of this user that a segmill left which was killed with all that watched it."""
    own = [path for path in _entries(temporary_top()) if _is_ours(path) and path.lstat().st_uid == os.getuid()]
    return _old("temporary", [(path, f"temporary folder {path.name}") for path in own], days, now_s)


def ray_sessions(days: float, now_s: float) -> list[Removal]:
    """Return the folders of Ray sessions that segmill started for this user and that no process belongs to any more."""
    ours = [
        path for path in _entries(sessions_folder())
        if not path.is_symlink() and (path / MARK).is_file() and path.lstat().st_uid == os.getuid()
    ]  # fmt: skip
    if not ours:
        return []
    commands = "\n".join(_commands())
    ended = [path for path in ours if path.name not in commands]
    return _old("ray", [(path, f"Ray session {path.name}") for path in ended], days, now_s)


def delete(removals: Iterable[Removal]) -> None:
    """Delete files and folders; what is gone already is passed over."""
    for removal in removals:
        path = Path(removal.key)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def files_below(path: Path) -> Iterator[FoundFile]:
    """Yield the file at ``path``, or every file below the folder; links are not followed."""
    if not path.is_symlink() and path.is_dir():
        for top, _, names in os.walk(path):
            for name in names:
                yield from _facts(Path(top, name))
    else:
        yield from _facts(path)


def _is_ours(path: Path) -> bool:
    return path.name.startswith(OURS) or (
        path.name.startswith(RUN_FOLDER) and (path / MARK).is_file() and path != Path(tempfile.gettempdir())
    )


def _old(store: str, places: Iterable[tuple[Path, str]], days: float, now_s: float) -> list[Removal]:
    """Return what has no file or folder that was written in the last ``days`` days."""
    found = []
    for path, what in places:
        try:
            files = tuple(files_below(path))
            written = max([path.lstat().st_mtime, *(file.modified_s for file in files)])
        except FileNotFoundError:
            continue
        if written < now_s - days * DAY_S:
            found.append(Removal(store, what, f"not written for {days:g} days", str(path), files))
    return found


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _facts(path: Path) -> Iterator[FoundFile]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode):
        yield FoundFile(str(path), found.st_size, found.st_mtime, (found.st_dev, found.st_ino), found.st_nlink)


def _commands() -> Iterator[str]:
    for process in psutil.process_iter():
        try:
            yield " ".join(process.cmdline())
        except psutil.Error:
            continue
