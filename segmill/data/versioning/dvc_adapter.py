"""The one door to DVC: the repository under lock, its tracked folders, its cache, its stages, all as plain values.

DVC's command line costs a process of half a second per question, so these are its Python parts; few of them are
public. They stay in this module, and pyproject.toml caps DVC at the release they were read in.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill.data.versioning.dvc_remote import DvcRemote
from segmill.data.versioning.dvc_stage import PIPELINE_FILE, DvcStage, Pushable, hash_of
from segmill.data.versioning.object_store import ObjectStore
from segmill.data.versioning.sharing import share
from segmill.errors import InputError

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCK_FILE = "dvc.lock"
_TO_DO = (
    "where that is dvc.lock, bring it back with `git checkout dvc.lock` or delete it: "
    "the next run takes what it finds in DVC's run-cache"
)
TORN_READS = 5  # times 0.1 s: a file that another process rewrites is whole again by then


@contextmanager
def repository(root: Path, *, locked: bool = True) -> Iterator[DvcRepository]:
    """Open the DVC repository at ``root``, locked. One per call and thread: it is never shared.

    DVC's run-cache takes "dvc.yaml" from the current folder, so that is ``root`` while the lock is held. Without the
    lock, which others may wait for, only ``push_objects`` may be called.

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
    if not locked:
        with repo:
            yield DvcRepository(repo)
        return
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
                same = not there.exists() or hash_of(out, cached) == hash_of(out, there)
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

    def pushable(self, stages: Iterable[str]) -> list[Pushable]:
        """Return what the remote is to hold of these stages, as dvc.lock records them."""
        return [self.stage(name).pushable() for name in stages]

    def push_objects(self, objects: Iterable[Pushable]) -> int:
        """Send files, then run-cache entries, that the remote lacks; return how many files.

        Raises InfrastructureError where the remote does not answer.
        """
        remote, wanted = DvcRemote(self._repo), list(objects)
        sent = remote.push({md5 for one in wanted for md5 in one.md5s})
        remote.push_runs({name: content for one in wanted for name, content in one.runs.items()})
        return sent

    def object_stores(self, *, remote: bool) -> list[ObjectStore]:
        """Return the cache and, where it is asked for and there is one, the remote."""
        local = self._repo.cache.local
        stores = [ObjectStore("dvc_cache", local.fs, local.path, self._repo.stage_cache.cache_dir)]
        if remote and self.has_remote:
            from dvc_data.hashfile.db import get_index

            there = self._repo.cloud.get_remote_odb(command="gc")
            runs = there.fs.join(self._repo.cloud.get_remote_odb(command="gc", hash_name="md5-dos2unix").path, "runs")
            stores.append(ObjectStore("remote", there.fs, there.path, runs, get_index(there).clear))
        return stores

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
