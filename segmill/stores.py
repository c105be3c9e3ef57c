"""How many bytes each store of a workspace takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from segmill.params import Params
from segmill.workspace import Workspace


def store_sizes(workspace: Workspace, params: Params) -> dict[str, int]:
    """Return the bytes of each store, and of all as ``total``.

    A file with several names (hard links) counts once, for the first store that has it. A clone (reflink)
    can't be distinguished from a copy and counts in each store. Servers and buckets are not counted.
    """
    root, data = workspace.root, workspace.root / params.data.path
    stores = {
        "data": [data],
        "packed": [workspace.packed, workspace.augmented, workspace.shards],
        "models": [workspace.members, workspace.ensemble],
        "reports": [workspace.reports],
        "dvc_cache": [root / ".dvc" / "cache"],
        "remote": [root / params.data.remote] if "://" not in params.data.remote else [],
        "registry": [root / "mlartifacts", root / "mlflow.db", workspace.ledger],
        "scratch": [workspace.scratch],
    }
    seen: set[tuple[int, int]] = set()
    sizes = {name: sum(_new_bytes(path, seen) for path in paths) for name, paths in stores.items()}
    sizes["other"] = _new_bytes(root, seen)
    return {**sizes, "total": sum(sizes.values())}


def _new_bytes(top: Path, seen: set[tuple[int, int]]) -> int:
    """Return the bytes of the files at or below ``top`` that are not in ``seen`` (device and inode), and enter them."""
    total = 0
    for entry in _files(top):
        with suppress(FileNotFoundError):  # a run removes what it made for a moment
            found = entry.stat(follow_symlinks=False)
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_size
    return total


def _files(top: Path) -> Iterator[os.DirEntry[str] | Path]:
    """Yield the files at or below ``top``, which may be missing; links are not followed."""
    try:
        with os.scandir(top) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield entry
    except NotADirectoryError:
        yield top
    except FileNotFoundError:
        return
