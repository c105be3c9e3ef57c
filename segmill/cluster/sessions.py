"""Ray's session folders on this machine, and which of them segmill started. Light to import."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

MARK = "started_by_segmill"  # a file in the session's folder


def sessions_folder() -> Path:
    """Return where Ray keeps the folders of its sessions on this machine (``get_ray_temp_dir`` of Ray 2.60)."""
    top = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    return Path(top or ("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())) / "ray"


def mark(session: str | Path) -> None:
    """Say in a session's folder that segmill started it, so that `segmill gc` may delete it once it ended."""
    with suppress(OSError):
        (Path(session) / MARK).touch()
