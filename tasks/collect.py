"""Deletes what the block `keep:` does not keep, of the workspace and its stores. It may be interrupted.

No tool's own collection does this: `dvc gc` knows either all commits, and then every result ever made stays, or the
last ones, and then data versions go; in a remote it deletes what is other projects'. `mlflow gc` deletes what people
put aside, and knows nothing of champions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segmill import tracking
from segmill.data.versioning.dvc_adapter import repository
from segmill.data.versioning.dvc_remote import remote_faults
from segmill.data.versioning.git_contents import incomplete
from segmill.data.versioning.repository import committed
from segmill.data.versioning.versions import REMOTE_NAME
from segmill.errors import InfrastructureError, SegmillError
from segmill.params import Params
from segmill.promotion import collected, points, versions
from segmill.promotion.collected import PastRun, VersionFacts
from segmill.promotion.heads import examine
from segmill.promotion.keys import trusted_keys
from segmill.promotion.lease import Lease, holds, leased
from segmill.promotion.ledger import Conflict, Ledger, LedgerError
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.rows import Entry
from segmill.promotion.signers import ensure_signer
from segmill.retention import folders, objects
from segmill.retention.plan import DAY_S, FoundFile, Removal, by_store, freed_bytes, kept_versions, old_runs
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing
from tasks.prefect_history import delete_old_runs, old_flow_runs
from tasks.promote import mirrored, opened_ledger
from tasks.register import PIPELINE_FILES, model_name

COMMAND = "segmill gc"
MOST_TRIES = 5  # against others who write to the ledger at the same time


@dataclass
class Collected:
    """What a collection kept and deleted, or would delete.

    Attributes:
        dry_run: nothing was deleted.
        kept: version that keeps its files -> the reasons.
        removals: what was deleted.
        notes: sentences on what was left out.
        seconds: that it took.
    """

    dry_run: bool
    kept: dict[str, str] = field(default_factory=dict)
    removals: list[Removal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def freed_bytes(self) -> int:
        """Bytes that the deletion frees, where the store says; a file with another name that stays frees none."""
        return freed_bytes(self.removals)

    def sentences(self) -> list[str]:
        """Return what was deleted, in one sentence, and what was left out; nothing where there was nothing."""
        stores = ", ".join(f"{things} of {store}" for store, (things, _) in by_store(self.removals).items())
        freed = f"deleted what `keep` does not keep ({stores}), which freed {self.freed_bytes / 2**20:,.1f} MiB"
        return [*([freed] if stores else []), *self.notes]

    def facts(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        stores = by_store(self.removals).items()
        return {
            "dry_run": self.dry_run,
            "kept": self.kept,
            "removed": [
                {
                    "store": one.store, "what": one.what, "why": one.why, "files": len(one.files),
                    "bytes": sum(file.size_bytes for file in one.files),
                }
                for one in self.removals
            ],
            "stores": {name: {"things": things, "bytes": size} for name, (things, size) in stores},
            "freed_bytes": self.freed_bytes,
            "notes": self.notes,
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def collect(
    workspace: Workspace,
    params: Params,
    *,
    dry_run: bool = False,
    wait: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
    now_s: float | None = None,
) -> Collected:
    """Delete what ``params.keep`` does not keep; docs/retention.md says what always stays.

    The workspace and its data are written to by nobody else meanwhile, and the model is retrained nowhere. A run that
    holds both may call it. Where it is interrupted, the next call does the rest.

    Args:
        dry_run: say what would be deleted, and delete nothing.
        wait: until another command is done with the workspace, and another run with the model, instead of raising.
        say: is given the sentence about who is waited for.
        now_s: seconds since 1970 that the ages of versions, runs and results are counted from; None: now. Those of
            scratch and temporary folders are counted from now.

    Raises:
        WorkspaceBusy: another command writes to the workspace.
        LeaseHeld: the model is retrained, here or on another machine.
        LedgerError: the ledger is not to be believed, or is not the model's: nothing of a version is deleted by it.
        InputError: the data set is not there, or nobody may sign here.
        InfrastructureError: MLflow or the ledger does not answer.
    """
    began, done = time.monotonic(), Collected(dry_run)
    with ExitStack() as held:  # in the order in which a nightly run takes them
        held.enter_context(writing(workspace, Part.WORKSPACE, COMMAND, wait=wait, say=say))
        case = _Collection(workspace, params, done, time.time() if now_s is None else now_s)
        lease = held.enter_context(_alone(case, wait, say))
        held.enter_context(writing(workspace, Part.DATA, COMMAND, wait=wait, say=say))
        for step in (case.versions, case.runs, case.objects, case.folders, case.prefect):
            if lease:
                lease.refuse_lost()
            step()
    done.seconds = time.monotonic() - began
    return done


def collect_after_run(workspace: Workspace, params: Params) -> list[str]:
    """Collect at the end of a nightly run; return sentences on what was deleted, or on why not: the verdict counts.

    A clone in which nothing was fetched, since its verdict was known, made nothing that would have to go.
    """
    if not (workspace.root / params.data.path).exists():
        return []
    try:
        done = collect(workspace, params)
    except (SegmillError, OSError) as error:
        return [f"what `keep` does not keep was not deleted: {error}"]
    return done.sentences()


@contextmanager
def _alone(case: _Collection, wait: bool, say: Callable[[str], None]) -> Iterator[Lease | None]:
    """Hold the model's lease, so that nobody retrains it anywhere; nothing where this run does, or nothing is deleted.

    Without MLflow's database there is no version, and there need be no ledger.
    """
    if case.done.dry_run or not case.mlflow or holds(case.model):
        yield None
        return
    url = ledger_url(case.workspace.root, case.params.promotion.ledger_url)
    what = f"`{COMMAND}` in {case.workspace.root}"
    with leased(url, case.model, what, wait_s=math.inf if wait else 0.0, say=say) as lease:
        yield lease


@dataclass
class _Collection:
    """One collection: each method looks at one kind of store, and deletes there unless it is a dry run."""

    workspace: Workspace
    params: Params
    done: Collected
    now_s: float
    known: list[VersionFacts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keep = self.params.keep
        self.uri = tracking.address(self.workspace.root, self.params.mlflow.tracking_uri)
        self.model = model_name(self.workspace, self.params)
        database = self.uri.removeprefix("sqlite:///")
        self.mlflow = database == self.uri or Path(database).is_file()  # asking would make it

    def versions(self) -> None:
        book = opened_ledger(self.workspace, self.params)
        if self.mlflow:
            self.known, _ = collected.versions_of(self.uri, self.model)
        if self.done.dry_run or not self.known:  # none where MLflow is another one than that of the last run, too
            if findings := examine(self.uri, self.workspace.root, book, self.model):
                raise LedgerError(f"{findings[0]}; nothing is deleted until `segmill ledger verify` finds it whole")
            self.done.removals += [removal for _, removal in self._doomed(book.rows(self.model))]
            return
        if said := ensure_signer(self.workspace.root):
            self.done.notes.append(said)
        with mirrored(self.workspace, self.params, self.uri, book, self.model) as noticed:
            for tries_left in reversed(range(MOST_TRIES)):
                try:
                    self._delete_versions(book)
                    break
                except Conflict:
                    if not tries_left:
                        raise
        self.done.notes += noticed

    def _doomed(self, rows: Any) -> list[tuple[VersionFacts, Removal]]:
        """Decide which versions stay, and return those whose files are deleted."""
        if not self.mlflow:
            return []
        self.known, aliases = collected.versions_of(self.uri, self.model)
        self.done.kept = kept_versions(rows, self.known, aliases, self.keep, self.now_s)
        found = []
        for one in self.known:
            if one.gone or one.version in self.done.kept:
                continue
            if other := collected.used_elsewhere(self.uri, self.model, one):
                self.done.kept[one.version] = f"has its files with {other}"
                continue
            files = [FoundFile(file.path, file.size_bytes, one.made_s, file.inode, file.links)
                     for file in collected.files_of(self.uri, one.source)]  # fmt: skip
            what = f"version {one.version} of {self.model}"
            found.append((one, Removal("registry", what, "no reason to stay", one.version, tuple(files))))
        return found

    def _delete_versions(self, book: Ledger) -> None:
        """Delete the files of versions, each after a row of the ledger about it.

        Nobody is given the files from the moment that the version is tagged. Whoever had them before and means to let
        it serve (a rollback) is refused by the ledger once our row is there; or has appended first, and our row is
        refused (Conflict): it is decided again then what stays.
        """
        writer = book.begin(self.model)
        doomed = self._doomed(writer.rows)
        self._look_at_interrupted()
        for one, removal in doomed:
            collected.begin_deletion(self.uri, self.model, one.version)
            points.at("before collect row")
            size = sum(file.size_bytes for file in removal.files)
            entry = Entry(action="collect", version=one.version, reasons=[removal.why], facts={"bytes": size})
            writer = writer.after(book.append(writer, entry))
            points.at("after collect row")
            collected.delete_version_files(self.uri, self.model, one)
            points.at("after deletion")
            self.done.removals.append(removal)

    def _look_at_interrupted(self) -> None:
        """Give back versions that stay now and whose deletion was interrupted, where it had not begun in earnest."""
        for one in self.known:
            if not one.going or one.version not in self.done.kept:
                continue
            versions.files_are_there(self.uri, self.model, one.version)
            try:
                with versions.verified_copy(self.uri, self.model, one.version, trusted_keys(self.workspace.root)):
                    continue
            except InfrastructureError:
                raise
            except SegmillError:
                collected.begin_deletion(self.uri, self.model, one.version)
                why = self.done.kept.pop(one.version)
                self.done.notes.append(
                    f"version {one.version} ({why}) has lost files in a collection that was interrupted; retrain with "
                    "its settings stores it again"
                )

    def runs(self) -> None:
        if not self.mlflow or self.keep.run_days is None:
            return
        found = collected.runs_before(self.uri, self.model, self.now_s - self.keep.run_days * DAY_S)
        registered = {one.run_id for one in self.known}
        stay = {one.run_id for one in self.known if one.version in self.done.kept}
        old = [
            run for run in old_runs(found, self.done.kept, stay, self.keep, self.now_s)
            if not (run.gone and run.run_id in registered)
        ]  # fmt: skip
        self.done.removals += [self._run_removal(run) for run in old]
        if not self.done.dry_run:
            collected.delete_runs(self.uri, old, registered)

    def _run_removal(self, run: PastRun) -> Removal:
        files = [FoundFile(file.path, file.size_bytes, 0.0, file.inode, file.links)
                 for file in collected.files_of(self.uri, run.artifacts, record=True)]  # fmt: skip
        return Removal(
            "runs", f"run {run.name}", f"ended more than {self.keep.run_days} days ago", run.run_id, tuple(files)
        )

    def objects(self) -> None:
        root, data = self.workspace.root, self.params.data
        stay = [one for one in self.known if one.version in self.done.kept]
        missing = incomplete(root) if self.keep.remote else ""
        names = objects.named(root, data.path, self._locks(stay), [
            one.tags["data_version"] for one in stay if "data_version" in one.tags
        ])  # fmt: skip
        with repository(root) as repo:
            repo.use_remote(REMOTE_NAME, data.remote)
            stores = repo.object_stores(remote=True)
            contents = [objects.contents(stores[0])]
            try:
                contents += [objects.contents(store) for store in stores[1:]]
            except remote_faults() as error:
                self.done.notes.append(f"{data.remote} does not answer ({error}), so nothing was deleted there")
            private = not missing and stores[0].inside(root)
            with _unreachable(data.remote):
                found, said = objects.removals(
                    contents, names, private_cache=private, since_s=self.now_s - self.keep.recent_days * DAY_S
                )
            if missing:
                self.done.notes.append(f"nothing was deleted in {data.remote}: {missing}")
            if missing or not self.keep.remote:
                found = [one for one in found if one.store != "remote"]
            self.done.notes += said
            self.done.removals += found
            if not self.done.dry_run:
                with _unreachable(data.remote):
                    objects.delete(stores, found)

    def _locks(self, stay: Iterable[VersionFacts]) -> list[bytes]:
        """Return the dvc.lock that each of these versions was made with, from its run or its commit."""
        found = []
        for one in stay:
            commit = one.tags.get("git_commit", "none").removesuffix("-dirty")
            lock = tracking.read_artifact(self.uri, one.run_id, f"{PIPELINE_FILES}/{objects.LOCK}")
            lock = lock or committed(self.workspace.root, objects.LOCK, commit)
            if lock is None:
                self.done.notes.append(f"the dvc.lock of version {one.version} is in neither its run nor git")
            found += [lock] if lock else []
        return found

    def folders(self) -> None:
        days, now_s = self.keep.scratch_days, time.time()
        found = [
            *folders.scratch(self.workspace, days, now_s),
            *folders.drafts(self.workspace, days, now_s),
            *folders.temporary(days, now_s),
            *folders.ray_sessions(days, now_s),
        ]
        self.done.removals += found
        if not self.done.dry_run:
            folders.delete(found)

    def prefect(self) -> None:
        if self.keep.prefect_days is None:
            return
        found = old_flow_runs(self.workspace, self.model, self.now_s - self.keep.prefect_days * DAY_S)
        self.done.removals += found
        if not self.done.dry_run:
            delete_old_runs(found)


@contextmanager
def _unreachable(remote: str) -> Iterator[None]:
    """Say in a sentence that the cache or the remote can't be read or written."""
    try:
        yield
    except remote_faults() as error:
        raise InfrastructureError(
            f"DVC's cache or its remote {remote} can't be read or written ({error}); correct that and run it again"
        ) from error
