"""DVC's remote as stages use it: files by md5, and the run-cache entries of one stage, fetched and pushed.

DVC's own fetch and push ask for whole repositories, copy the whole run-cache each time, and take a remote that does not
answer for one that lacks the files: a stage would be run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill.errors import InfrastructureError, InputError
from segmill.files import write_atomically
from segmill.passwords import without_passwords

if TYPE_CHECKING:
    from dvc.repo import Repo

LISTING = ".dir"  # ends the md5 of a folder: that of its list of files
RUNS = "runs"  # DVC's run-cache, in a cache and in a remote


def remote_faults() -> tuple[type[Exception], ...]:
    """Return what DVC and its S3 layer raise where a remote can't be reached or used."""
    from botocore.exceptions import BotoCoreError, ClientError
    from dvc.exceptions import DvcException

    return DvcException, OSError, BotoCoreError, ClientError


class DvcRemote:
    """The default remote of an open repository; all methods raise InfrastructureError where it does not answer."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo

    @property
    def named(self) -> bool:
        """Whether the repository has a default remote at all."""
        return bool(self._repo.config["core"].get("remote"))

    def fetch(self, md5s: Iterable[str]) -> None:
        """Copy files to the cache, each held against its md5, as far as the remote has them.

        A file that is damaged in the remote is removed there, so that the next push replaces it.
        """
        cache = self._repo.cache.local
        lacking = [md5 for md5 in sorted(set(md5s)) if not Path(cache.oid_to_path(md5)).is_file()]
        if not lacking:
            return
        with self._reaching():
            remote = self._files()
            absent = self._copied(remote, cache, lacking, verify=True)
            for md5 in lacking:
                if md5 not in absent and not Path(cache.oid_to_path(md5)).is_file():
                    remote.fs.remove(remote.oid_to_path(md5))

    def push(self, md5s: Iterable[str]) -> int:
        """Send what the remote lacks, lists of folders last, and return how many files that were.

        Raises InputError where neither cache nor remote has a file: what names it must not be pushed.
        """
        cache, wanted = self._repo.cache.local, sorted(set(md5s))
        if not wanted:
            return 0
        with self._reaching():
            remote = self._files()
            there = set(remote.oids_exist(wanted))
            new = [md5 for md5 in wanted if md5 not in there]
            if lost := [md5 for md5 in new if not Path(cache.oid_to_path(md5)).is_file()]:
                raise InputError(
                    f"{len(lost)} recorded files ({lost[0]}) are in neither the cache nor the remote {self._url}",
                    "run again, which makes them again",
                )
            self._copied(cache, remote, [md5 for md5 in new if not md5.endswith(LISTING)])
            self._copied(cache, remote, [md5 for md5 in new if md5.endswith(LISTING)])
        return len(new)

    def fetch_runs(self, key: str) -> None:
        """Copy to the local run-cache the entries of a stage with these dependencies, parameters and outs.

        ``key``: their hash, as DVC names the entries' folder. An entry that is damaged in the remote is removed there.
        """
        folder = Path(self._repo.stage_cache.cache_dir, key[:2], key)
        with self._reaching():
            remote = self._runs()
            for path in list(remote.fs.find(remote.fs.join(remote.path, RUNS, key[:2], key))):
                local = folder / remote.fs.name(path)
                if local.is_file():
                    continue
                content = remote.fs.cat_file(path)
                if self.sound_run(content, local.name):
                    made = remote.fs.modified(path).timestamp()
                    write_atomically(local, content)
                    os.utime(local, (made, made))  # of several the newest counts
                else:
                    remote.fs.remove(path)

    def push_runs(self, runs: Mapping[str, bytes]) -> None:
        """Send run-cache entries, by path below the run-cache's folder, that the remote lacks."""
        with self._reaching():
            remote = self._runs()
            for name, content in runs.items():
                path = remote.fs.join(remote.path, RUNS, *name.split("/"))
                if remote.fs.exists(path):
                    continue
                if remote.fs.protocol == "local":
                    write_atomically(Path(path), content)
                else:
                    remote.fs.pipe_file(path, content)

    @staticmethod
    def sound_run(content: bytes, name: str) -> bool:
        """Tell whether these bytes are the run-cache entry that ``name``, the hash of its values, says they are."""
        from dvc.stage.cache import _get_cache_hash
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            values = YAML(typ="safe").load(content)
        except (YAMLError, UnicodeDecodeError):
            return False
        return isinstance(values, dict) and bool(_get_cache_hash(values) == name)

    @staticmethod
    def _copied(source: Any, target: Any, md5s: list[str], **how: Any) -> list[str]:
        """Copy files between cache and remote; return those that ``source`` lacks, or raise what went wrong first."""
        absent: list[str] = []
        faults: list[BaseException] = []

        def note(md5: str, fault: BaseException) -> None:
            if isinstance(fault, FileNotFoundError):
                absent.append(md5)
            else:
                faults.append(fault)

        if md5s:
            paths = [source.oid_to_path(md5) for md5 in md5s]
            target.add(paths, source.fs, md5s, on_error=note, batch_size=target.fs.jobs, **how)
        if faults:
            raise faults[0]
        return absent

    def _files(self) -> Any:
        return self._repo.cloud.get_remote_odb(command="fetch")

    def _runs(self) -> Any:
        return self._repo.cloud.get_remote_odb(command="fetch", hash_name="md5-dos2unix")  # where DVC has them too

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except remote_faults() as fault:
            said = without_passwords(str(fault)).strip() or type(fault).__name__
            raise InfrastructureError(
                f"the remote {self._url} does not answer ({said.splitlines()[0]}); what was made is in the local "
                "cache; check data.remote in params.yaml and its credentials, then run again"
            ) from fault

    @property
    def _url(self) -> str:
        name = self._repo.config["core"]["remote"]
        return without_passwords(str(self._repo.config["remote"][name]["url"]))
