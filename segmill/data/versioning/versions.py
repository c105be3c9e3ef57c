"""Versions of the labelled set: DVC hashes the folder, keeps its bytes and sends them to the remote."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from segmill.data.schema.special_files import refuse_special_files
from segmill.data.storage import journal
from segmill.data.versioning.dvc_adapter import DvcRepository, repository
from segmill.data.versioning.dvc_remote import remote_faults
from segmill.data.versioning.repository import who_works
from segmill.data.versioning.sharing import share
from segmill.errors import InfrastructureError, InputError
from segmill.files import write_atomically

REMOTE_NAME = "segmill"
MISSING, UNCACHED = "files are missing", "its copy in the cache is lost"
NOTE_FILE = "note.json"  # why a change that is under way is made
CHECKOUT_FILE = "checkout.json"  # which version is being brought back


@dataclass(frozen=True)
class DataVersion:
    """One state of the set: DVC's md5 of the folder (32 hex digits), its files and bytes, and how it came here."""

    md5: str
    files: int
    size_bytes: int
    state: Literal["unchanged", "added", "restored", "changed"]


def recorded_version(root: Path, path: str) -> DataVersion | None:
    """Return the version that ``PATH.dvc`` records, or None where the set was never added. Reads one small file."""
    from ruamel.yaml import YAML

    record = root / f"{path}.dvc"
    if not record.is_file():
        return None
    (out,) = YAML(typ="safe").load(record.read_text())["outs"]
    return DataVersion(out["md5"].removesuffix(".dir"), out.get("nfiles", 1), out["size"], "unchanged")


def data_changed(root: Path, path: str) -> str:
    """Say in what way the set differs from its recorded version; "" where it does not."""
    if journal.interrupted(root / path) or _note(root / path, CHECKOUT_FILE):
        return "a change was interrupted; the next `segmill retrain` or `segmill data` command finishes it"
    recorded = recorded_version(root, path)
    if recorded is None:
        return "never added"
    with repository(root) as repo:
        record = root / f"{path}.dvc"
        if not repo.differs(record):
            return ""
        if not (root / path).exists():
            return MISSING
        return "files changed" if repo.content_differs(record) else UNCACHED


def bring_data(root: Path, path: str, remote: str | None) -> DataVersion:
    """Make the set and its recorded version agree, enter it in the log, then push to the remote what that lacks.

    A missing set is restored from the cache or the remote; a new or changed one becomes a new version. What an
    interrupted change or checkout left undone is done first.

    Args:
        root: the workspace.
        path: the set's folder, relative to ``root``.
        remote: a folder, or ``s3://bucket/prefix`` (credentials from AWS's own environment variables);
            None keeps whatever default remote the repository has.

    Raises:
        InputError: there is neither data nor a version of it.
        InfrastructureError: the remote did not answer, or lacks the version.
    """
    version = record_data(root, path, remote)
    with repository(root) as repo:
        if repo.has_remote:
            try:
                repo.push(root / f"{path}.dvc")
            except remote_faults() as error:
                raise InfrastructureError(
                    f"the new data version is safe in the local cache but could not be pushed to {remote}: {error}; "
                    "correct the remote (data.remote in params.yaml) and run again"
                ) from error
    return version


def share_data(root: Path, path: str, remote: str | None) -> None:
    """Let a remote that is a folder on the same disk share its files with the cache, in place of copies."""
    with repository(root) as repo:
        _use_remote(repo, remote)
        record = root / f"{path}.dvc"
        if repo.has_remote and record.is_file():
            repo.share_with_remote(record)


def record_data(root: Path, path: str, remote: str | None) -> DataVersion:
    """As ``bring_data``, without the push."""
    from segmill.data.versioning import history

    folder = root / path
    journal.finish(folder)
    refuse_special_files(folder)
    _finish_checkout(root, path, remote)
    state: Literal["unchanged", "added", "restored", "changed"] = "unchanged"
    with repository(root) as repo:
        _use_remote(repo, remote)
        before = recorded_version(root, path)
        if before is None:
            if not folder.is_dir():
                raise InputError(
                    f"{folder} is not there and no version of it is recorded; put the labelled set there "
                    "(images/, masks/, dataset.yaml), or name its folder in data.path of params.yaml"
                )
            repo.add(folder)
            state = "added"
        elif not folder.exists():
            _note_checkout(folder, before)  # killed in the middle, the next try completes it
            _restore(repo, root / f"{path}.dvc", remote)
            state = "restored"
        elif repo.differs(root / f"{path}.dvc"):
            repo.add(folder)
            state = "changed"
        now = recorded_version(root, path)
        assert now is not None, "dvc add leaves a record"
        if state == "changed" and before and now.md5 == before.md5:
            state = "unchanged"
        log = history.read_log(history.log_path(folder))
        if state in ("added", "changed") or now.md5 not in {entry.version for entry in log}:
            _enter(Store(repo, remote), folder, now, before if state == "changed" else None, log)
    for note in (NOTE_FILE, CHECKOUT_FILE):
        (journal.hidden_folder(folder) / note).unlink(missing_ok=True)
    journal.sweep(folder)
    return DataVersion(now.md5, now.files, now.size_bytes, state)


@contextmanager
def explained(root: Path, path: str, message: str) -> Iterator[None]:
    """Note why the set is changed in the block; the log entry of the version that comes of it says so.

    A change that is interrupted and finished later keeps its message; one that fails leaves no note.
    """
    folder = root / path
    before = recorded_version(root, path)
    note = journal.make_hidden_folder(folder) / NOTE_FILE
    write_atomically(note, json.dumps({"message": message, "before": before.md5 if before else None}))
    try:
        yield
    except BaseException:
        if not journal.interrupted(folder):
            note.unlink(missing_ok=True)
            journal.sweep(folder)
        raise


def checkout_data(root: Path, path: str, remote: str | None, version: DataVersion) -> None:
    """Bring the files of an older version back; interrupted, the next ``bring_data`` or ``checkout_data`` completes it.

    ``version``: its md5, number of files and bytes, as the log has them. All bytes are in the cache before a file of
    the set is touched.

    Raises:
        InputError: the set holds what is in no version.
        InfrastructureError: bytes of the version are in neither the cache nor the remote.
    """
    journal.finish(root / path)
    _finish_checkout(root, path, remote)
    changed = data_changed(root, path)
    if changed not in ("", MISSING, UNCACHED):
        raise InputError(
            f"{root / path} holds what is in no version ({changed}); record it with `segmill retrain` or "
            f"`dvc add {quote(path)}`, then check out again"
        )
    if changed != MISSING:
        record_data(root, path, remote)  # what is there now stays in the log, also where plain `dvc add` made it
    with store(root, remote) as files:
        files.bring(files.listing(version.md5).values())
    _note_checkout(root / path, version)
    _finish_checkout(root, path, remote)


def follow_record(root: Path, path: str, record: bytes) -> None:
    """Have the next ``bring_data`` bring the version of another record (the text of ``PATH.dvc``) that git is set to.

    Else it would take what is there, of the version before, for a new one. InputError where the set, or its record,
    holds what is in no version.
    """
    from ruamel.yaml import YAML

    if not (root / path).exists():
        return
    changed = data_changed(root, path)
    if changed not in ("", UNCACHED) and not _note(root / path, CHECKOUT_FILE):
        raise InputError(
            f"{root / path} holds what is in no version ({changed})", "remove it, or add and commit it elsewhere"
        )
    (out,) = YAML(typ="safe").load(record)["outs"]
    version = DataVersion(out["md5"].removesuffix(".dir"), out.get("nfiles", 1), out["size"], "restored")
    _note_checkout(root / path, version)


class Store:
    """Files of any version by md5: they are in DVC's cache, or are brought into it from the remote."""

    def __init__(self, repo: DvcRepository, remote: str | None) -> None:
        self._repo, self._remote = repo, remote

    def path(self, md5: str) -> Path:
        """Return where the cache keeps the file, whether it is there or not."""
        return self._repo.cache_path(md5)

    def bring(self, md5s: Iterable[str]) -> None:
        """Have the files in the cache. InfrastructureError where the remote does not answer or lacks one."""
        lacking = sorted({md5 for md5 in md5s if not self.path(md5).is_file()})
        if not lacking:
            return
        what = f"{len(lacking)} of the version's files are" if len(lacking) > 1 else "a file of the version is"
        try:
            self._repo.fetch_files(lacking)
        except remote_faults() as error:
            raise InfrastructureError(
                f"{what} not in the cache and could not be fetched from {self._remote or 'a remote'}: {error}; "
                "check data.remote in params.yaml and its credentials"
            ) from error
        if not all(self.path(md5).is_file() for md5 in lacking):
            raise InfrastructureError(
                f"{what} damaged in the remote {self._remote}; push them again from another clone"
            )

    def listing(self, version: str) -> dict[str, str]:
        """Return relative path -> md5 of every file of a version (DVC's md5 of the folder)."""
        self.bring([f"{version}.dir"])
        return {row["relpath"]: row["md5"] for row in json.loads(self.path(f"{version}.dir").read_text())}

    def write(self, version: str, to: Path) -> None:
        """Write the files of a version below the new folder ``to``. Only read them: they may share the cache's bytes.

        Raises InfrastructureError where bytes of the version are in neither the cache nor the remote.
        """
        listing = self.listing(version)
        self.bring(listing.values())
        for name, md5 in listing.items():
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not share(self.path(md5), path):
                shutil.copyfile(self.path(md5), path)

    @contextmanager
    def view(self, version: str, names: Collection[str] | None = None) -> Iterator[Path]:
        """Give a folder of links to the files ``names`` of a version (None: all), for the block alone. Only read it."""
        listing = {name: md5 for name, md5 in self.listing(version).items() if names is None or name in names}
        self.bring(listing.values())
        with tempfile.TemporaryDirectory(prefix="segmill-view-") as folder:
            for name, md5 in listing.items():
                link = Path(folder) / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self.path(md5))
            yield Path(folder)


@contextmanager
def store(root: Path, remote: str | None) -> Iterator[Store]:
    """Open the files of all versions; the repository is locked meanwhile."""
    with repository(root) as repo:
        _use_remote(repo, remote)
        yield Store(repo, remote)


def _enter(files: Store, folder: Path, now: DataVersion, before: DataVersion | None, log: list[Any]) -> None:
    """Enter the version that is recorded now into the log, with what it changed."""
    from segmill.data.versioning import history

    note = _note(folder, NOTE_FILE)
    parent: str | None
    if note:
        parent, message = note["before"], note["message"]
    elif before is not None:
        parent, message = before.md5, "changed in place"
    else:
        parent, message = (log[-1].version, "recorded with dvc add") if log else (None, "first version")
    contents = history.read_contents(files, now.md5)
    counts: dict[str, int | None] = dict.fromkeys(("added", "removed", "relabelled", "reimaged"))
    known, gain = None, None
    try:
        earlier = (
            history.read_contents(files, parent) if parent else history.VersionContents({}, contents.classes, None)
        )
        if parent:
            found = history.compare(files, earlier, contents)
            counts = {name: len(getattr(found, name)) for name in counts}
            known = next((entry.class_pixels for entry in reversed(log) if entry.version == parent), None)
            gain = found.pixels
        else:
            counts = {**dict.fromkeys(counts, 0), "added": len(contents.samples)}
    except InfrastructureError:
        pass  # the version before can't be reached: the log says so by leaving the counts open
    entry = history.LogEntry(
        version=now.md5,
        before=parent,
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        who=who_works(folder.parent),
        message=message,
        files=now.files,
        size_bytes=now.size_bytes,
        samples=len(contents.samples),
        class_pixels=history.class_totals(files, contents, known, gain),
        **counts,
    )
    history.append_log(history.log_path(folder), entry)


def _finish_checkout(root: Path, path: str, remote: str | None) -> None:
    """Carry a checkout that was noted to its end; nothing without a note."""
    from ruamel.yaml import YAML

    facts = _note(root / path, CHECKOUT_FILE)
    if facts is None:
        return
    with store(root, remote) as files:
        files.bring(files.listing(facts["md5"]).values())
    record = root / f"{path}.dvc"
    yaml = YAML()
    content = yaml.load(record.read_text())
    content["outs"][0] |= {"md5": f"{facts['md5']}.dir", "size": facts["size_bytes"], "nfiles": facts["files"]}
    text = StringIO()
    yaml.dump(content, text)
    write_atomically(record, text.getvalue())
    with repository(root) as repo:
        if not repo.checkout(record, force=True):
            raise InfrastructureError(f"files of {path} left the cache while they were brought back; run it again")
    (journal.hidden_folder(root / path) / CHECKOUT_FILE).unlink()
    journal.sweep(root / path)


def _note_checkout(folder: Path, version: DataVersion) -> None:
    write_atomically(journal.make_hidden_folder(folder) / CHECKOUT_FILE, json.dumps(asdict(version)))


def _note(folder: Path, name: str) -> dict[str, Any] | None:
    path = journal.hidden_folder(folder) / name
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def _use_remote(repo: DvcRepository, url: str | None) -> None:
    if url is not None:
        repo.use_remote(REMOTE_NAME, url)


def _restore(repo: DvcRepository, record: Path, remote: str | None) -> None:
    if repo.checkout(record):
        return
    try:
        repo.pull(record)
    except remote_faults() as error:
        raise InfrastructureError(
            f"the files of {record} are in neither the cache nor the remote {remote}: {error}; "
            "check data.remote in params.yaml and its credentials, or put the files back"
        ) from error
