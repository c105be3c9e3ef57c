"""What the registry says of a workspace's models, and what it said of the same database before, which takes no time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.environment import tracking_uri
from segmill.alongside import answered_alongside
from segmill.data.versioning.versions import recorded_version
from segmill.errors import SegmillError
from segmill.files import write_atomically
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.promotion.registry import Version


@dataclass(frozen=True)
class Standing:
    """What the registry holds: champion, challenger, and whether today's ensemble was judged already."""

    champion: dict[str, Any] | None
    challenger: dict[str, Any] | None
    judged: bool


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


def _state(workspace: Workspace, params: Params) -> str | None:
    """Return a digest of all that the answer depends on; None where a server, which may change unseen, is asked."""
    database = _database(workspace, params)
    if database is None:
        return None
    files = [workspace.root / params.data.path / "dataset.yaml", *sorted(workspace.ensemble.rglob("*"))]
    for one in (database, workspace.ledger):
        files += [one.with_name(one.name + suffix) for suffix in ("", "-wal", "-journal")]
    facts: list[Any] = [version("segmill"), params.promotion.model_dump(mode="json")]
    for path in files:
        with suppress(FileNotFoundError):
            found = path.stat()
            facts.append([str(path), found.st_ino, found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _standing(workspace: Workspace, params: Params) -> Standing:
    from segmill.promotion import earlier_ledger as ledger
    from segmill.promotion import registry
    from segmill.promotion.signing import ensemble_digest
    from tasks.promote import earlier_judgement, ledger_url
    from tasks.register import Registered, model_name

    uri, name = tracking_uri(workspace, params), model_name(workspace, params)
    champion, challenger = (registry.aliased(uri, name, alias) for alias in (registry.CHAMPION, registry.CHALLENGER))
    decisions = {entry.version: entry.decision for entry in reversed(ledger.entries(ledger_url(workspace), name))}
    judged = False
    if (workspace.ensemble / "ensemble.json").is_file():
        version = registry.find_version(uri, name, ensemble_digest(workspace.ensemble))
        serving = champion.version if champion else None
        if version is not None:
            judged = earlier_judgement(workspace, Registered(name, version), serving, params.promotion) is not None
    return Standing(_facts(name, champion, decisions), _facts(name, challenger, decisions), judged)


def _facts(name: str, version: Version | None, decisions: dict[str, str | None]) -> dict[str, Any] | None:
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
