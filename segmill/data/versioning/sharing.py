"""Files of the same bytes that lie on the disk once: clones where the file system has them, else hard links."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from segmill.files import replacing

# Files of stages' outs that nothing writes in place: packed pixels and weights. Whoever makes them replaces them.
NEVER_WRITTEN_IN_PLACE = (".bin", ".safetensors")
READ_ONLY = 0o444
_CLONE = 0x40049409  # FICLONE of linux/fs.h


def shareable(out: Path) -> list[Path]:
    """Return the files of a stage's out that may be hard links."""
    return [path for path in sorted(out.rglob("*")) if path.suffix in NEVER_WRITTEN_IN_PLACE and path.is_file()]


def share(original: Path, path: Path) -> bool:
    """Make ``path``, which is absent or holds the same bytes, take no space beside ``original``; both get read-only.

    Returns False, and changes nothing, where the file system has neither clones nor hard links, or they are on two.
    """
    if path.exists() and path.samefile(original):
        return True
    try:
        with replacing(path, durable=False) as draft:
            if not _clone(original, draft):
                os.link(original, draft)
            draft.chmod(READ_ONLY)
    except OSError:
        return False
    return True


def _clone(original: Path, draft: Path) -> bool:
    with suppress(OSError), original.open("rb") as source, draft.open("wb") as target:
        fcntl.ioctl(target, _CLONE, source.fileno())
        return True
    draft.unlink(missing_ok=True)
    return False
