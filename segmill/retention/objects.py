"""DVC's cache and remote: which objects something needs, which belong to this project, and which are deleted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmill.data.versioning.git_contents import at_every_tip, every_version, files_like
from segmill.data.versioning.history import log_path
from segmill.data.versioning.object_store import LISTING, KnownRun, ObjectStore, StoredObject, hashes
from segmill.retention.plan import FoundFile, Removal, unneeded

OWN = ".segmill/"  # dependencies there, of code and settings, may be those of another project too
LOCK = "dvc.lock"


@dataclass(frozen=True)
class Named:
    """What git and the versions that stay name, by DVC's md5; the files of a folder are named by its listing.

    Attributes:
        needed: what stays.
        data: those of them that are versions of labelled sets, which nothing can make again.
        known: all that this project ever recorded.
    """

    needed: frozenset[str]
    data: frozenset[str]
    known: frozenset[str]


def named(root: Path, data_path: str, locks: Iterable[bytes], versions: Iterable[str]) -> Named:
    """Return what is named by the workspace, by every branch and tag, and by the versions that stay.

    Data versions count in every commit, results in the last one of each branch and tag.

    Args:
        root: the workspace.
        data_path: folder of the labelled set, relative to ``root``.
        locks: contents of the dvc.lock of each version that stays.
        versions: data versions of those, DVC's md5 of the folder.
    """
    log = log_path(root / data_path)
    logs = at_every_tip(root, log.relative_to(root).as_posix()) + ([log.read_bytes()] if log.is_file() else [])
    logged = hashes(b"\n".join(logs))
    records = every_version(root, "**/*.dvc") + [path.read_bytes() for path in files_like(root, "**/*.dvc")]
    data = hashes(b"\n".join(records)) | {f"{version}{LISTING}" for version in (*logged, *versions)}
    now = [path.read_bytes() for path in files_like(root, f"**/{LOCK}")]
    others = every_version(root, f"*/**/{LOCK}")  # of pipelines of other people in folders of the workspace
    needed = data | hashes(b"\n".join([*now, *at_every_tip(root, LOCK), *others, *locks]))
    return Named(frozenset(needed), frozenset(data), frozenset(needed | hashes(b"\n".join(every_version(root, LOCK)))))


@dataclass(frozen=True)
class Contents:
    """What is in a store: its objects and the entries of its run-cache."""

    store: ObjectStore
    objects: list[StoredObject]
    runs: list[KnownRun]


def contents(store: ObjectStore) -> Contents:
    """Return what is in a store; the run-cache first, so that each entry's outs are seen."""
    runs = store.runs()
    return Contents(store, store.objects(), runs)


def removals(
    stores: Sequence[Contents], names: Named, *, private_cache: bool, since_s: float
) -> tuple[list[Removal], list[str]]:
    """Return what is deleted of each store, and sentences on what can't be known.

    An object stays that ``names`` needs, that is younger than ``since_s``, or that something younger names. Of the
    remote, and of a cache that others may use, only what this project recorded is deleted.

    Args:
        stores: the cache, then the remote.
        private_cache: nobody but this workspace uses the cache.
        since_s: seconds since 1970.
    """
    listings = _Listings([one.store for one in stores], {entry.name for one in stores for entry in one.objects})
    fresh = {entry.name for one in stores for entry in one.objects if entry.modified_s >= since_s}
    runs = [run for one in stores for run in one.runs]
    named_lately = {name for run in runs if run.file.modified_s >= since_s for name in run.names()}
    needed = listings.whole(names.needed | fresh | named_lately)
    lost = sorted(name for name in names.data if name.endswith(LISTING) and not listings.has(name))
    known = listings.whole(names.known | made_from(names.known, runs))
    said = [
        f"the listing of data version {name[:8]} is in neither cache nor remote, so only what this project is known to "
        "have recorded is deleted"
        for name in lost
    ]
    found = []
    for place in stores:
        name = place.store.name
        whole = name == "dvc_cache" and private_cache and not lost
        objects = unneeded(map(_found, place.objects), needed, None if whole else known, since_s)
        dropped = [
            run for run in place.runs
            if run.file.modified_s < since_s and not run.outs() <= needed and (whole or run.outs() <= known)
        ]  # fmt: skip
        why = "no commit, version that stays or recent run names it"
        if dropped:
            entries = tuple(_found(run.file) for run in dropped)
            found.append(Removal(name, "known runs", "their results are deleted", "runs", entries))
        if objects:
            found.append(Removal(name, "files by hash", why, "objects", tuple(objects)))
    return found, said


def delete(stores: Iterable[ObjectStore], some: Iterable[Removal]) -> None:
    """Delete what ``removals`` named: known runs, then listings, then files, so that nothing is named that is gone."""
    places = {store.name: store for store in stores}
    for store in places.values():
        store.forget()
    for removal in some:
        place, names = places[removal.store], [file.name for file in removal.files]
        (place.delete_runs if removal.key == "runs" else place.delete)(names)


def made_from(known: Iterable[str], runs: Iterable[KnownRun]) -> set[str]:
    """Return what runs made whose dependencies, other than code and settings, are all ``known`` or made so."""
    from ruamel.yaml import YAML

    ours, made = set(known), set()
    left = []
    for run in runs:
        entry: dict[str, Any] = YAML(typ="safe").load(run.content)
        deps = {str(dep["md5"]) for dep in entry.get("deps", []) if "md5" in dep and not dep["path"].startswith(OWN)}
        if deps:
            left.append((deps, run.outs()))
    while ready := [one for one in left if one[0] <= ours]:
        left = [one for one in left if one not in ready]
        for _, outs in ready:
            ours |= outs
            made |= outs
    return made


class _Listings:
    """Reads listings of folders, each once, from the first store that has it."""

    def __init__(self, stores: Sequence[ObjectStore], present: set[str]) -> None:
        self._stores, self._present = stores, present
        self._read: dict[str, set[str] | None] = {}

    def whole(self, names: Iterable[str]) -> set[str]:
        """Return the names with those of the files of every folder among them whose listing is there."""
        found = set(names)
        for name in list(found):
            if name.endswith(LISTING) and self.has(name):
                found |= self._read[name] or set()
        return found

    def has(self, name: str) -> bool:
        if name not in self._read:
            self._read[name] = None
            for store in self._stores if name in self._present else ():
                if (files := store.listing(name)) is not None:
                    self._read[name] = files
                    break
        return self._read[name] is not None


def _found(one: StoredObject) -> FoundFile:
    return FoundFile(one.name, one.size_bytes, one.modified_s, one.inode, one.links)
