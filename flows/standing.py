"""What the registry says of a workspace's models, and what it said of the same database before, which takes no time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.environment import tracking_uri
from segmill.alongside import answered_alongside
from segmill.data.versioning.versions import recorded_version
from segmill.errors import InputError, SegmillError
from segmill.files import write_atomically
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.promotion.registry import Version


@dataclass(frozen=True)
class Standing:
    """What the ledger and the registry hold of a workspace's model.

    Attributes:
        champion, challenger: facts of the versions.
        judged: whether today's ensemble was judged already.
        gate: what is left of the test set's judgements, as ``tasks.judging.gate_state`` has it; None before a run.
        waiting: version, approvals so far and needed, and until when; None where none waits for approval.
        noticed: sentences: what is wrong with the ledger, or who else moved the alias.
    """

    champion: dict[str, Any] | None
    challenger: dict[str, Any] | None
    judged: bool
    gate: dict[str, Any] | None = None
    waiting: dict[str, Any] | None = None
    noticed: list[str] = field(default_factory=list)


@contextmanager
def registry_asked(workspace: Workspace, params: Params) -> Iterator[Callable[[], Standing]]:
    """Ask the registry while the block looks at the stages; the block calls what it is given for the answer.

    In a process of its own: MLflow takes 3 s of a core to import and to open its database. A database in a file that
    nobody wrote to since is not asked at all.
    """
    database = _database(workspace, params)
    if (
        (database and not database.is_file())
        or not (workspace.root / params.data.path).is_dir()
        or not recorded_version(workspace.root, params.data.path)
    ):
        yield lambda: Standing(None, None, False)
        return
    if known := _known(workspace, params):
        yield lambda: known
        return
    with answered_alongside(ask_registry, workspace, params) as answer:
        yield answer


def ask_registry(workspace: Workspace, params: Params) -> Standing:
    """Ask MLflow and the ledger, and keep the answer for as long as nobody writes to either."""
    state = _state(workspace, params)
    standing = _standing(workspace, params)
    if state and state == _state(workspace, params):
        write_atomically(_kept(workspace), json.dumps({"state": state, **asdict(standing)}), durable=False)
    return standing


def remember(workspace: Workspace, params: Params) -> None:
    """Ask now, where MLflow is loaded, what `segmill status` would have to load it for."""
    if _database(workspace, params):
        with suppress(SegmillError):  # a run is not to fail for it
            ask_registry(workspace, params)


def _known(workspace: Workspace, params: Params) -> Standing | None:
    """Return what was answered last, where all that it depends on is the same; else None."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        kept = json.loads(_kept(workspace).read_text())
        if kept.pop("state") == _state(workspace, params):
            return Standing(**kept)
    return None


def _kept(workspace: Workspace) -> Path:
    return workspace.scratch / "standing.json"


def _database(workspace: Workspace, params: Params) -> Path | None:
    """Return MLflow's database where that is a file; None where a server is asked."""
    uri = tracking_uri(workspace, params)
    path = uri.removeprefix("sqlite:///")
    return Path(path) if path != uri else None


def _ledger(workspace: Workspace, params: Params) -> Path | None:
    """Return the ledger's database where that is a file; None where a server is asked."""
    from segmill.promotion.ledger_url import ledger_url

    url = ledger_url(workspace.root, params.promotion.ledger_url)
    path = url.removeprefix("sqlite:///")
    return Path(path) if path != url else None


def _state(workspace: Workspace, params: Params) -> str | None:
    """Return a digest of all that the answer depends on; None where a server, which may change unseen, is asked."""
    database, ledger = _database(workspace, params), _ledger(workspace, params)
    if database is None or ledger is None:
        return None
    files = [workspace.root / params.data.path / "dataset.yaml", workspace.packed / "test" / "index.parquet"]
    files += sorted(workspace.ensemble.rglob("*"))
    for one in (database, ledger):
        files += [one.with_name(one.name + suffix) for suffix in ("", "-wal", "-journal")]
    facts: list[Any] = [version("segmill"), params.promotion.model_dump(mode="json")]
    for path in files:
        with suppress(FileNotFoundError):
            found = path.stat()
            facts.append([str(path), found.st_ino, found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _standing(workspace: Workspace, params: Params) -> Standing:
    from segmill.promotion import registry
    from segmill.promotion.ledger import LedgerError
    from segmill.promotion.rows import waiting
    from segmill.promotion.signing import ensemble_digest
    from tasks.judging import gate_settings, gate_state
    from tasks.promote import bring_in_line, earlier_judgement, opened_ledger
    from tasks.register import model_name

    uri, name = tracking_uri(workspace, params), model_name(workspace, params)
    book = opened_ledger(workspace, params)
    try:
        noticed = bring_in_line(workspace, params, uri, book, name)
    except (LedgerError, InputError) as fault:  # a look at the workspace is not to fail for it
        noticed = [str(fault)]
    rows = book.rows(name)
    serves = rows[-1].champion if rows else None
    champion = registry.read_version(uri, name, serves) if serves else None
    challenger = registry.aliased(uri, name, registry.CHALLENGER)
    decisions = {row.version: row.decision for row in rows if row.decision}
    judged = False
    if (workspace.ensemble / "ensemble.json").is_file():
        version = registry.find_version(uri, name, ensemble_digest(workspace.ensemble))
        judged = version is not None and earlier_judgement(rows, version, gate_settings(params)) is not None
    wait = waiting(rows)
    return Standing(
        _facts(name, champion, decisions),
        _facts(name, challenger, decisions),
        judged,
        gate_state(workspace, params, rows),
        wait.facts() if wait else None,
        noticed,
    )


def _facts(name: str, version: Version | None, decisions: Mapping[str, str]) -> dict[str, Any] | None:
    if version is None:
        return None
    return {
        "name": name,
        "version": version.version,
        "miou": float(version.tags["test_miou"]),
        "data_version": version.tags["data_version"],
        "verdict": decisions.get(version.version),
        "run_id": version.run_id,
    }
