"""The files of DVC's cache or remote by their hash, and its run-cache: listed, read and deleted."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from segmill.errors import InfrastructureError

MD5 = re.compile(rb"\b[0-9a-f]{32}(?:\.dir)?\b")
LISTING = ".dir"  # ends the hash of a folder's listing


@dataclass(frozen=True)
class StoredObject:
    """A file of the store. ``name``: its hash, or where it is in the run-cache; ``inode``: None in object storage."""

    name: str
    size_bytes: int
    modified_s: float
    inode: tuple[int, int] | None
    links: int


@dataclass(frozen=True)
class KnownRun:
    """An entry of the run-cache: what a stage made of what. ``content``: its text, which names all by md5."""

    file: StoredObject
    content: bytes

    def names(self) -> set[str]:
        """Return the hashes of its dependencies and outs."""
        return hashes(self.content)

    def outs(self) -> set[str]:
        """Return the hashes of its outs, which come last in it."""
        return hashes(self.content.partition(b"\nouts:")[2])


@dataclass(frozen=True)
class ObjectStore:
    """DVC's cache or remote.

    Attributes:
        name: ``dvc_cache`` or ``remote``.
        forget: what DVC remembers of a remote's contents is to be forgotten before something is deleted there.
    """

    name: str
    _fs: Any
    _objects: str
    _runs: str
    forget: Callable[[], None] = field(default=lambda: None)

    def inside(self, root: Path) -> bool:
        """Tell whether it is a folder below ``root``."""
        return self._local and Path(self._objects).resolve().is_relative_to(root.resolve())

    def objects(self) -> list[StoredObject]:
        """Return all objects that are named by a hash."""
        found = []
        for path, facts in self._listed(self._objects):
            name = "".join(PurePosixPath(path).parts[-2:])
            if MD5.fullmatch(name.encode()):
                found.append(replace(facts, name=name))
        return found

    def runs(self) -> list[KnownRun]:
        """Return the entries of the run-cache."""
        listed = self._listed(self._runs)
        entries = [(path, facts) for path, facts in listed if len(PurePosixPath(path).name) == 64]
        return [
            KnownRun(replace(facts, name="/".join(PurePosixPath(path).parts[-3:])), self._fs.fs.cat_file(path))
            for path, facts in entries
        ]

    def listing(self, name: str) -> set[str] | None:
        """Return the hashes of a folder's files; None where its listing is not there or is damaged."""
        try:
            return {row["md5"] for row in json.loads(self._fs.fs.cat_file(self._path(name)))}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def delete_runs(self, names: Iterable[str]) -> None:
        """Delete entries of the run-cache, and the folders that are empty then: DVC fails at a stage that has one."""
        paths = [self._fs.join(self._runs, *name.split("/")) for name in names]
        self._delete(paths)
        self._refuse_left(self._runs, paths)
        for folder in {os.path.dirname(path) for path in paths} if self._local else ():
            with suppress(OSError):  # another entry is left in it
                os.rmdir(folder)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, listings of folders first: with one DVC takes all of the folder's files to be there."""
        names = set(names)
        listings = {name for name in names if name.endswith(LISTING)}
        for some in (listings, names - listings):
            self._delete([self._path(name) for name in sorted(some)])
        self._refuse_left(self._objects, [self._path(name) for name in names])

    def _path(self, name: str) -> str:
        return str(self._fs.join(self._objects, name[:2], name[2:]))

    def _listed(self, folder: str) -> list[tuple[str, StoredObject]]:
        """Return path and facts of every file below a folder, which may not be there."""
        if self._local:
            walked = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
            return [(path, facts) for path in walked if (facts := _local_facts(path))]
        self._fs.fs.invalidate_cache()
        try:
            return [(path, _facts(one)) for path, one in self._fs.fs.find(folder, detail=True).items()]
        except FileNotFoundError:
            return []

    def _delete(self, paths: Sequence[str]) -> None:
        if self._local:
            for path in paths:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            return
        for start in range(0, len(paths), 1000):  # what one request of S3 may hold
            self._fs.remove(list(paths[start : start + 1000]))

    def _refuse_left(self, folder: str, deleted: Sequence[str]) -> None:
        """Raise InfrastructureError where some are there: of a bucket whose key may not delete, s3fs says nothing."""
        if self._local or not deleted:
            return
        if left := set(deleted) & {path for path, _ in self._listed(folder)}:
            raise InfrastructureError(
                f"{len(left)} files of the {self.name} are still there after they were deleted; give its key the right "
                "to delete (S3: s3:DeleteObject), or set keep.remote to false"
            )

    @property
    def _local(self) -> bool:
        return bool(self._fs.protocol == "local")


def hashes(content: bytes) -> set[str]:
    """Return every md5 that the text of dvc.lock, a ``.dvc`` file or an entry of the run-cache names."""
    return {found.decode() for found in MD5.findall(content)}


def _local_facts(path: str) -> StoredObject | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return StoredObject(path, found.st_size, found.st_mtime, (found.st_dev, found.st_ino), found.st_nlink)


def _facts(one: dict[str, Any]) -> StoredObject:
    """Return what object storage says of a file; one that it does not say the time of is taken for new."""
    when = one.get("LastModified", one.get("mtime"))
    seconds = when.timestamp() if isinstance(when, datetime) else float(when) if when is not None else math.inf
    return StoredObject(str(one["name"]), int(one["size"]), seconds, None, 1)
