"""Where what was measured on a machine is kept for all workspaces of a user."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """Return the user's cache folder for ``kind``, as the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segmill" / kind
