"""Old scratch, drafts, temporary folders and Ray sessions: only ours, only old, and never one that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from segmill.cluster import sessions
from segmill.orphans import MARK
from segmill.retention import folders
from segmill.retention.plan import DAY_S
from segmill.workspace import Workspace

DAYS = 14


def put(path: Path, days: float = 30, size: int = 10) -> Path:
    """Write a file that was last written so many days ago, with all folders that are made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    when = time.time() - days * DAY_S
    for place in (path, path.parent):
        os.utime(place, (when, when))
    return path


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def test_old_scratch_goes_and_what_is_written_stays(space: Workspace) -> None:
    old = put(space.checkpoints / "net-0123" / "deep" / "state.pt", size=100)
    os.utime(old.parents[1], (0, 0))
    fresh = put(space.checkpoints / "net-4567" / "state.pt", days=0.5)
    put(space.scratch / "tuning" / "data" / "abc" / "whole")
    put(space.scratch / "tuning" / "net-abc" / "study.json")
    put(space.scratch / "verify-x" / "raw" / "image.png")
    put(space.scratch / "last_run.json")
    put(space.scratch / "chunks" / "abc.bin")
    put(space.scratch / "prefect" / "prefect.db")
    for some in ("tuning", "tuning/data", "ray", "verify-x"):
        os.utime(space.scratch / some, (0, 0))
    found = folders.scratch(space, DAYS, time.time())
    names = {Path(one.key).relative_to(space.scratch).as_posix() for one in found}
    assert names == {"ray/net-0123", "tuning/data/abc", "tuning/net-abc", "verify-x"}
    assert {one.what for one in found} >= {"checkpoints net-0123", "data of a study abc", "study net-abc"}
    assert sum(file.size_bytes for one in found for file in one.files) == 130
    folders.delete(found)
    assert fresh.exists() and not old.parents[1].exists() and (space.scratch / "chunks" / "abc.bin").exists()
    assert folders.scratch(space, DAYS, time.time()) == []


def test_a_folder_in_which_something_deep_is_new_stays(space: Workspace) -> None:
    new = put(space.checkpoints / "net-0123" / "checkpoint" / "state.pt", days=0)
    os.utime(new.parents[1], (0, 0))
    os.utime(new.parent, (0, 0))
    assert folders.scratch(space, DAYS, time.time()) == []


def test_drafts_of_dead_processes_go(space: Workspace) -> None:
    drafts = [
        put(space.members / ".net.here-1-0.draft" / "weights.safetensors"),
        put(space.root / ".dvc/cache/files/md5/ab/.cdef.here-1-0.draft"),
        put(space.root / ".dvc.lock.here-1-0.draft"),
    ]
    os.utime(drafts[0].parent, (0, 0))
    kept = put(space.members / "net" / "weights.safetensors")
    found = folders.drafts(space, DAYS, time.time())
    assert len(found) == 3
    folders.delete(found)
    assert kept.exists() and not any(path.exists() for path in drafts)


def test_temporary_folders_of_others_and_new_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = put(tmp_path / "segmill-version-abc" / "weights.safetensors")
    put(tmp_path / "segmill-version-new" / "weights.safetensors", days=0)
    put(tmp_path / "somebody" / "file")
    link = tmp_path / "segmill-link"
    link.symlink_to(tmp_path / "somebody")
    os.utime(link, (0, 0), follow_symlinks=False)
    for name in ("sm-killed", "sm-own", "sm-of-another-program"):  # the second is that of the run that asks
        put(tmp_path / name / ("other" if "another" in name else MARK))
        os.utime(tmp_path / name, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "sm-own"))
    found = folders.temporary(DAYS, time.time())
    assert {Path(one.key).name for one in found} == {"segmill-version-abc", "segmill-link", "sm-killed"}
    folders.delete(found)
    assert not old.exists() and not link.is_symlink() and (tmp_path / "somebody" / "file").exists()


def test_sessions_that_run_and_those_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    names = ("session_2026-01-01_00-00-00_000001_7", "session_2026-01-01_00-00-00_000002_8", "session_of_others")
    for name in names:
        put(tmp_path / "ray" / name / "logs" / "gcs.out")
        if name != "session_of_others":
            sessions.mark(tmp_path / "ray" / name)
            os.utime(tmp_path / "ray" / name / MARK, (0, 0))
        os.utime(tmp_path / "ray" / name, (0, 0))
    (tmp_path / "ray" / "session_latest").symlink_to(tmp_path / "ray" / names[0])
    command = [sys.executable, "-c", "import time; time.sleep(60)", f"--session-dir={tmp_path}/ray/{names[1]}/sockets"]
    with subprocess.Popen(command) as raylet:
        try:
            (found,) = folders.ray_sessions(DAYS, time.time())
        finally:
            raylet.kill()
    assert found.key == str(tmp_path / "ray" / names[0])
    folders.delete([found])
    assert not Path(found.key).exists() and (tmp_path / "ray" / "session_of_others").exists()
