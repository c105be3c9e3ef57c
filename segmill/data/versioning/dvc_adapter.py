"""The one door to DVC: the repository under lock, its tracked folders, its cache, its stages, all as plain values.

DVC's command line costs a process of half a second per question, so these are its Python parts; few of them are
public. They stay in this module, and pyproject.toml caps DVC at the release they were read in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segmill.data.versioning.sharing import share, shareable
from segmill.errors import InputError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

PIPELINE_FILE = "dvc.yaml"
LOCK_FILE = "dvc.lock"
_TO_DO = (
    "where that is dvc.lock, bring it back with `git checkout dvc.lock` or delete it: "
    "the next run takes what it finds in DVC's run-cache"
)
TORN_READS = 5  # times 0.1 s: a file that another process rewrites is whole again by then


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


@contextmanager
def repository(root: Path) -> Iterator[DvcRepository]:
    """Open the DVC repository at ``root``, locked. One per call and thread: it is never shared.

    DVC's run-cache takes "dvc.yaml" from the current folder, so that is ``root`` while the lock is held.

    Raises:
        InputError: ``root`` is no DVC repository, or in none of git.
    """
    _be_quiet()
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo, lock_repo
    from dvc.scm import SCMError
    from dvc.utils.serialize import YAMLFileCorruptedError
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

    try:
        repo = Repo(str(root), _wait_for_lock=True)
    except NotDvcRepoError:
        raise InputError(f"{root} is not a DVC repository; run `dvc init` there") from None
    except SCMError:
        raise InputError(f"{root} is in no git repository, where DVC keeps its records; run `git init` there") from None
    with repo, lock_repo(repo), chdir(root):
        _drop_torn_files(Path(repo.tmp_dir), root)
        try:
            yield DvcRepository(repo)
        except (YAMLFileCorruptedError, YAMLSyntaxError, YAMLValidationError) as error:
            raise InputError(f"{_first_line(error)}; {_TO_DO}") from error


def init(root: Path) -> None:
    """Make the git repository ``root`` a DVC repository."""
    _be_quiet()
    from dvc.repo import Repo

    Repo.init(str(root)).close()


def remote_faults() -> tuple[type[Exception], ...]:
    """Return what DVC and its S3 layer raise where a remote can't be reached or used."""
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException

    return DvcException, OSError, BotoCoreError, ClientError


class DvcRepository:
    """An open, locked repository. Paths of records (``data/raw.dvc``) are absolute."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self.root = Path(repo.root_dir)

    def add(self, folder: Path) -> None:
        """Record a folder's state in its ``.dvc`` file and its bytes in the cache."""
        self._repo.add(str(folder))

    def differs(self, record: Path) -> bool:
        """Tell whether a recorded folder differs from its record, or lacks a file in the cache."""
        return bool(self._repo.stage.load_one(str(record)).changed())

    def content_differs(self, record: Path) -> bool:
        """Tell whether the recorded folder's own files differ from its record."""
        return bool(self._repo.stage.load_one(str(record)).outs[0].changed_checksum())

    def checkout(self, record: Path, *, force: bool = False) -> bool:
        """Bring the recorded folder back from the cache; False where that lacks a file.

        ``force``: also over files that are in no version.
        """
        from dvc.exceptions import CheckoutError

        try:
            self._repo.checkout(str(record), force=force)
        except CheckoutError:
            return False
        return True

    def push(self, record: Path) -> None:
        """Send what the remote lacks; raises one of ``remote_faults``. A folder on this disk shares the cache's."""
        self.share_with_remote(record, what_is_there=False)
        self._repo.push(str(record))

    def pull(self, record: Path) -> None:
        """Fetch the recorded folder and bring it back; raises one of ``remote_faults``."""
        self._repo.pull(str(record))
        self.share_with_remote(record)

    def share_with_remote(self, record: Path, *, what_is_there: bool = True) -> None:
        """Keep the files of the recorded folder once for the cache and a remote that is a folder on the same disk.

        Nobody writes to either in place. ``what_is_there``: also what the remote has already, as a copy.
        """
        remote = self._repo.cloud.get_remote_odb(command="push")
        for out in self._repo.stage.load_one(str(record)).outs if remote.fs.protocol == "local" else ():
            for _, _, entry in out.get_obj() or ():
                cached, there = Path(out.cache.oid_to_path(entry.value)), Path(remote.oid_to_path(entry.value))
                if not cached.is_file() or (there.exists() and not what_is_there):
                    continue
                same = not there.exists() or _hash_of(out, cached) == _hash_of(out, there)
                if same and not share(cached, there):
                    return  # on another disk, where DVC copies

    @property
    def has_remote(self) -> bool:
        return bool(self._repo.config["core"].get("remote"))

    def use_remote(self, name: str, url: str) -> None:
        """Make ``url`` (a folder relative to the workspace, or an address) the default remote, in the local config."""
        if "://" not in url:
            url = str((self.root / url).resolve())
        remote: dict[str, Any] = self._repo.config["remote"].get(name, {})
        if remote.get("url") == url and self._repo.config["core"].get("remote") == name:
            return
        with self._repo.config.edit("local") as config:
            config["remote"][name] = {"url": url}
            config["core"]["remote"] = name

    def cache_path(self, md5: str) -> Path:
        """Return where the cache keeps the file of this md5, whether it is there or not."""
        return Path(self._repo.cache.local.oid_to_path(md5))

    def fetch_files(self, md5s: list[str]) -> None:
        """Copy files from the remote to the cache, each held against its md5; raises one of ``remote_faults``."""
        remote = self._repo.cloud.get_remote_odb(command="fetch")
        paths = [remote.oid_to_path(md5) for md5 in md5s]
        self._repo.cache.local.add(paths, remote.fs, md5s, verify=True)

    def lock_file(self) -> bytes:
        """Return the bytes of dvc.lock, none where no stage ran yet."""
        path = self.root / LOCK_FILE
        return path.read_bytes() if path.is_file() else b""

    def lock_entries(self) -> dict[str, Any]:
        """Return the stages of dvc.lock by name. DVC rewrites that file in place, under the lock that is held here."""
        from dvc.utils.serialize import load_yaml

        path = self.root / LOCK_FILE
        content = load_yaml(str(path)) if path.is_file() else None
        return dict((content or {}).get("stages") or {})

    def upstream(self) -> dict[str, set[str]]:
        """Return, per stage of dvc.yaml, upstream first, the names of the stages it directly depends on."""
        import networkx

        graph = self._repo.index.graph
        order = reversed(list(networkx.topological_sort(graph)))
        return {
            stage.name: {up.name for up in graph.successors(stage) if hasattr(up, "name")}
            for stage in order
            if hasattr(stage, "name")
        }

    def stage(self, name: str) -> DvcStage:
        """Return the stage ``name`` of dvc.yaml, such as ``finetune@lite0``. InputError where there is none."""
        from dvc.exceptions import DvcException

        try:
            return DvcStage(self._repo, self._repo.stage.load_one(str(self.root / PIPELINE_FILE), name))
        except DvcException as error:
            raise InputError(f"dvc.yaml does not give a stage {name}: {error}") from None


class DvcStage:
    """A stage of an open repository: what differs from its record, and how its outs come back or are recorded."""

    def __init__(self, repo: Repo, stage: PipelineStage) -> None:
        self._repo, self._stage = repo, stage
        self.name: str = stage.name

    @property
    def fresh(self) -> bool:
        """Whether nothing differs from the recorded run."""
        return not self._stage.changed()

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
                recorded = _hash_of(out, path)
                cached = Path(out.cache.oid_to_path(recorded))
                if not cached.is_file():
                    share(path, cached)
                elif not cached.samefile(path) and _hash_of(out, cached) == recorded:
                    share(*sorted((path, cached), key=lambda one: one.stat().st_nlink, reverse=True))

    def restore(self) -> bool:
        """Bring the outs back from the cache, the remote or DVC's run-cache; False where this was never computed.

        Damaged outs are replaced. A file of the cache that is damaged itself is removed from it, and fetched again
        where there is a remote.
        """
        if not self._stage.changed_stage() and not self._stage.changed_deps(allow_missing=True):
            return self._restore_recorded()
        return self._restore_known_run()

    def _restore_recorded(self) -> bool:
        """Bring back the very outs that dvc.lock names."""
        from dvc.exceptions import DvcException

        self._drop_damaged(self._stage.outs)
        if not self._stage.outs_cached() and self._repo.config["core"].get("remote"):
            with contextlib.suppress(DvcException):
                self._repo.fetch(self._address)
        if not self._stage.outs_cached():
            return False
        self._stage.checkout(force=True)
        self.share()
        return self.fresh

    def _restore_known_run(self) -> bool:
        """Bring back and record what an earlier run made of the dependencies and parameters as they are now."""
        from dvc.exceptions import ConfirmRemoveError
        from dvc.stage.cache import RunCacheNotFoundError, _can_hash

        runs = self._repo.stage_cache
        now = self._loaded()
        now.save_deps()  # a run is looked up by them
        known = runs._load(now) if _can_hash(now) else None
        if known is None or self._drop_damaged(runs._create_stage(known, wdir=now.wdir).outs):
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

    def _drop_damaged(self, outs: Iterable[Any]) -> bool:
        """Take the files of ``outs`` out of the cache whose bytes are not those of their md5; tell whether there were.

        DVC itself trusts every file of its cache that is write-protected.
        """
        dropped = False
        for out in outs:
            content = out.get_obj()
            entries = [oid for _, _, oid in content] if out.hash_info.isdir and content else [out.hash_info]
            for entry in entries:
                path = out.cache.oid_to_path(entry.value)
                with contextlib.suppress(FileNotFoundError):
                    if _hash_of(out, Path(path)) != entry.value:
                        Path(path).unlink()
                        dropped = True
        return dropped

    def _loaded(self) -> PipelineStage:
        """Return the stage as dvc.yaml and dvc.lock have it: ``save_deps`` and ``restore`` change the one they get."""
        stage: PipelineStage = self._repo.stage.load_one(str(Path(self._repo.root_dir) / PIPELINE_FILE), self.name)
        return stage

    @property
    def _address(self) -> str:
        return f"{Path(self._repo.root_dir) / PIPELINE_FILE}:{self.name}"


def _hash_of(out: Any, path: Path) -> str:
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
        elif _hash_of(out, path) != recorded.value:
            found.append((f"{out}/{'/'.join(key)}", "modified"))
    return found


def _drop_torn_files(folder: Path, root: Path) -> None:
    """Remove what a process killed in the middle of writing left: DVC refuses to start with either file torn.

    ``rwlock`` says which processes read and write which outs; its writer holds the lock beside it only for moments.
    A ``dvc.lock`` without content knows no run; the run-cache still does.
    """
    rwlock = folder / "rwlock"
    for last in [False] * TORN_READS + [True]:
        try:
            if isinstance(json.loads(rwlock.read_text()), dict):
                break
        except FileNotFoundError:
            break
        except ValueError:
            pass
        if last:
            rwlock.unlink(missing_ok=True)
        else:
            time.sleep(0.1)
    lock = root / LOCK_FILE
    if lock.is_file() and not lock.read_text().strip():
        lock.unlink()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".:")


def _be_quiet() -> None:
    """Leave the terminal to segmill: no warnings, bars or spinners of DVC, which would scroll through a live table."""
    import dvc.repo  # noqa: F401 - sets its loggers up, once
    from dvc.ui import ui

    for said in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(said).setLevel(logging.ERROR)
    for bars in ("dvc.progress", "dvc_data.callbacks"):
        logging.getLogger(bars).setLevel(logging.CRITICAL)  # a bar looks at its logger's level
    ui.error_console.quiet = True  # where its spinner is drawn
