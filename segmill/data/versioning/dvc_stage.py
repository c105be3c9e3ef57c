"""One stage of the DVC repository: what differs from its record, and how its outs come back, are recorded and sent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segmill.data.versioning.dvc_remote import LISTING, DvcRemote
from segmill.data.versioning.sharing import share, shareable

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

PIPELINE_FILE = "dvc.yaml"


@dataclass(frozen=True)
class Change:
    """One way in which a stage differs from its recorded run.

    Attributes:
        kind: a parameter, another dependency, an out, or the stage's command and lists in dvc.yaml.
        path: of the dependency or out, relative to the workspace; a parameter's dotted key; "" for the stage.
        how: ``modified``, ``deleted``, ``new`` or ``not in cache``.
        old: recorded value of a parameter; recorded md5 of a dependency.
        new: value of a parameter now.
    """

    kind: Literal["parameter", "dependency", "out", "stage"]
    path: str
    how: str
    old: Any = None
    new: Any = None


@dataclass(frozen=True)
class Pushable:
    """What a remote is to hold of a stage: md5s of files and lists, and run-cache entries by path in that cache."""

    md5s: set[str]
    runs: dict[str, bytes]


class DvcStage:
    """A stage of an open repository: what differs from its record, and how its outs come back or are recorded."""

    def __init__(self, repo: Repo, stage: PipelineStage) -> None:
        self._repo, self._stage, self._remote = repo, stage, DvcRemote(repo)
        self.name: str = stage.name

    @property
    def fresh(self) -> bool:
        """Whether nothing differs from the recorded run."""
        return not self._stage.changed()

    @property
    def redefined(self) -> bool:
        """Whether dvc.yaml gives it another command than that of the recorded run."""
        return bool(self._stage.changed_stage())

    @property
    def recorded(self) -> bool:
        """Whether dvc.lock knows a run of this stage."""
        return any(dep.hash_info for dep in self._stage.deps)

    def changes(self) -> list[Change]:
        """Return what differs from the recorded run; an out is named by its file where that is one of a folder."""
        found: list[Change] = []
        for dep in self._stage.deps:
            for what, how in dep.status().items():
                if isinstance(how, dict):
                    old, new = dep.hash_info.value or {}, dep.read_params()
                    found += [Change("parameter", key, "modified", old.get(key), new.get(key)) for key in how]
                else:
                    found.append(Change("dependency", what, how, old=dep.hash_info.value))
        for out in self._stage.outs:
            for what, how in out.status().items():
                files = _differing_files(out) if how == "modified" else []
                found += [Change("out", file, kind) for file, kind in files] or [Change("out", what, how)]
        if self._stage.changed_stage():
            found.append(Change("stage", "", "modified"))
        return found

    def missing_dependencies(self) -> list[str]:
        return [str(dep) for dep in self._stage.deps if not dep.exists]

    def dependency_hashes(self) -> dict[str, Any]:
        """Return each dependency's hash as it is now; of parameters their values."""
        return {str(dep): dep.get_hash().value for dep in self._stage.deps}

    def remove_outs(self) -> None:
        self._stage.remove_outs()

    def record(self) -> None:
        """Write the stage's hashes to dvc.lock and its outs to the cache, as ``dvc repro`` does after its command.

        The outs stay as they are: DVC would take a fresh copy for every file that is a hard link.
        """
        self.share()
        self._repo.commit(self._address, force=True, relink=False)

    def share(self) -> None:
        """Keep the bytes of large files once for outs and cache, where nothing writes in place and the disk can."""
        for out in self._stage.outs:
            for path in shareable(Path(out.fs_path)):
                recorded = hash_of(out, path)
                cached = Path(out.cache.oid_to_path(recorded))
                if not cached.is_file():
                    share(path, cached)
                elif not cached.samefile(path) and hash_of(out, cached) == recorded:
                    share(*sorted((path, cached), key=lambda one: one.stat().st_nlink, reverse=True))

    def restore(self) -> bool:
        """Bring the outs back from the cache, the remote or a run-cache; False where this was never computed.

        Damaged outs are replaced. A file of the cache that is damaged itself is removed from it, and fetched again
        where there is a remote. Raises InfrastructureError where the remote does not answer.
        """
        recorded = not self._stage.changed_stage() and not self._stage.changed_deps(allow_missing=True)
        return (recorded and self._restore_recorded()) or self._restore_known_run()

    def pushable(self) -> Pushable:
        """Return what other machines need to bring back the outs that dvc.lock records; nothing of an out that dvc.yaml
        keeps from the remote."""
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile

        outs = [out for out in self._stage.outs if out.can_push]
        md5s = {entry.value for out in outs for entry in (out.hash_info, *self._entries(out))}
        if len(outs) < len(self._stage.outs):
            return Pushable(md5s, {})
        key, value = (_get_cache_hash(to_single_stage_lockfile(self._stage), key=key) for key in (True, False))
        entry = Path(self._repo.stage_cache.cache_dir, key[:2], key, value)
        return Pushable(md5s, {f"{key[:2]}/{key}/{value}": entry.read_bytes()} if entry.is_file() else {})

    def _restore_recorded(self) -> bool:
        """Bring back the very outs that dvc.lock names."""
        if not self._have(self._stage.outs):
            return False
        self._stage.checkout(force=True)
        self.share()
        return self.fresh

    def _restore_known_run(self) -> bool:
        """Bring back and record what an earlier run made of the dependencies and parameters as they are now."""
        from dvc.exceptions import ConfirmRemoveError
        from dvc.stage.cache import RunCacheNotFoundError, _can_hash, _get_stage_hash

        runs = self._repo.stage_cache
        now = self._loaded()
        now.save_deps()  # a run is looked up by them
        if not _can_hash(now):
            return False
        if not self._choose_run(now, _get_stage_hash(now)):
            return False
        try:
            try:
                runs.restore(self._loaded())
            except ConfirmRemoveError:  # the outs hold what no cache has: they are damaged, or were changed by hand
                self.remove_outs()
                runs.restore(self._loaded())
        except RunCacheNotFoundError:
            return False
        self.record()
        return True

    def _choose_run(self, now: PipelineStage, key: str) -> bool:
        """Have the outs of a known run in the cache, of several the newest that is whole, and let DVC find that one."""
        runs = self._repo.stage_cache
        folder = Path(runs.cache_dir, key[:2], key)
        if self._remote.named:
            self._remote.fetch_runs(key)
        entries = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for entry in entries:
            if not self._remote.sound_run(entry.read_bytes(), entry.name):
                entry.unlink()
            elif self._have(runs._create_stage(runs._load_cache(key, entry.name), wdir=now.wdir).outs, like=now):
                os.utime(entry)
                return True
        return False

    def _have(self, outs: Iterable[Any], like: PipelineStage | None = None) -> bool:
        """Have all files of ``outs`` in the cache, undamaged; what is lacking is fetched from the remote.

        ``like``: the stage as dvc.yaml has it, where ``outs`` are of a run-cache's entry, which does not say what is
        never pushed.
        """
        known = list(outs)
        if not all(out.hash_info for out in known):
            return False
        kept = {out.def_path for out in (like or self._stage).outs if not out.can_push}
        self._drop_damaged(known)
        if self._remote.named:
            fetchable = [out for out in known if out.def_path not in kept]
            self._remote.fetch(out.hash_info.value for out in fetchable)  # of a folder the list of its files
            self._remote.fetch(entry.value for out in fetchable for entry in self._entries(out))
        files = [out.cache.oid_to_path(entry.value) for out in known for entry in (out.hash_info, *self._entries(out))]
        return all(Path(path).is_file() for path in files)

    @staticmethod
    def _entries(out: Any) -> list[Any]:
        """Return the hashes of the files of an out that is a folder, where the cache has their list."""
        listed = out.hash_info.isdir and Path(out.cache.oid_to_path(out.hash_info.value)).is_file()
        return [entry for _, _, entry in out.get_obj() or ()] if listed else []

    def _drop_damaged(self, outs: Iterable[Any]) -> None:
        """Take the files of ``outs`` out of the cache whose bytes are not those of their md5.

        DVC itself trusts every file of its cache that is write-protected.
        """
        for out in outs:
            self._drop_if_damaged(out, out.hash_info.value)
            for entry in self._entries(out):
                self._drop_if_damaged(out, entry.value)

    @staticmethod
    def _drop_if_damaged(out: Any, md5: str) -> None:
        path = Path(out.cache.oid_to_path(md5))
        with contextlib.suppress(FileNotFoundError):
            if hash_of(out, path).removesuffix(LISTING) != md5.removesuffix(LISTING):
                path.unlink()

    def _loaded(self) -> PipelineStage:
        """Return the stage as dvc.yaml and dvc.lock have it: ``save_deps`` and ``restore`` change the one they get."""
        stage: PipelineStage = self._repo.stage.load_one(str(Path(self._repo.root_dir) / PIPELINE_FILE), self.name)
        return stage

    @property
    def _address(self) -> str:
        return f"{Path(self._repo.root_dir) / PIPELINE_FILE}:{self.name}"


def hash_of(out: Any, path: Path) -> str:
    """Return the hash of a file on this disk as ``out`` counts it; DVC remembers it while the file is not written."""
    from dvc_data.hashfile.hash import hash_file

    return str(hash_file(str(path), out.cache.fs, out.hash_name, out.cache.state)[1].value)


def _differing_files(out: Any) -> list[tuple[str, str]]:
    """Return path and ``modified`` or ``deleted`` of each file of an out that is not as it was recorded."""
    if not (out.hash_info and out.hash_info.isdir and Path(out.fs_path).is_dir()):
        return []
    found = []
    for key, _, recorded in out.get_obj() or ():
        path = Path(out.fs_path).joinpath(*key)
        if not path.is_file():
            found.append((f"{out}/{'/'.join(key)}", "deleted"))
        elif hash_of(out, path) != recorded.value:
            found.append((f"{out}/{'/'.join(key)}", "modified"))
    return found
