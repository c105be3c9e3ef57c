"""Ray's session folders on this machine, and which of them segmill started. Light to import."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from segmill.orphans import MARK, temporary_top


def sessions_folder() -> Path:
    """Return where Ray keeps the sessions of this machine that are in no run's own temporary folder."""
    named = os.environ.get("RAY_TMPDIR")
    return (Path(named) if named else temporary_top()) / "ray"  # as ``get_ray_temp_dir`` of Ray 2.60


def mark(session: str | Path) -> None:
    """Say in a session's folder that segmill started it, so that `segmill gc` may delete it once it ended."""
    with suppress(OSError):
        (Path(session) / MARK).touch()
