"""Step promote: challenger meets champion on the same test images; the gate decides, the ledger keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segmill.cluster.work import wait
from segmill.data.packing.packed import PackedSplit
from segmill.params import Params
from segmill.promotion import gate, ledger, registry
from segmill.training.distributed import launch
from segmill.workspace import Workspace
from tasks.register import Registered


@dataclass(frozen=True)
class Judged:
    """The gate's decision on a version, the sentences and figures behind it, and what came of it."""

    decision: str
    reasons: list[str]
    facts: dict[str, Any]
    outcome: str


def promote(workspace: Workspace, params: Params, uri: str, registered: Registered) -> Judged:
    """Score both models through the registry, each in a process of its own, and move `champion` if the gate passes.

    A version that was judged before against the same champion is not judged again.

    Raises:
        InputError: the champion knows other classes than the data.
        InfrastructureError: MLflow or the ledger does not answer, or somebody else promoted meanwhile.
    """
    book = ledger_url(workspace)
    seen = ledger.last_number(book, registered.model)
    champion = registry.aliased(uri, registered.model, registry.CHAMPION)
    if known := earlier_judgement(workspace, registered, champion.version if champion else None):
        return known
    versions = [registered.version, *([champion.version] if champion else [])]
    scored = [
        launch.on_ray("segmill.promotion.registered:score_registered", uri, registered.model, version, workspace.packed)
        for version in versions
    ]
    counts = [wait(reference) for reference in scored]
    verdict = gate.decide(
        counts[0],
        counts[1] if champion else None,
        PackedSplit(workspace.packed / "test").groups,
        floor_miou=params.promotion.floor_miou,
        min_gain=params.promotion.min_gain,
        confidence=params.promotion.confidence,
        seed=params.split.seed,
    )
    passed = verdict.decision == "PASS"
    entry = ledger.append(
        book,
        ledger.Entry(
            action="promote" if passed else "refuse",
            model=registered.model,
            version=registered.version,
            previous=champion.version if champion else None,
            decision=verdict.decision,
            reasons=verdict.reasons,
            facts=verdict.facts,
        ),
        after=seen,
    )
    if passed:
        registry.set_alias(uri, registered.model, registry.CHAMPION, registered.version)
    return _judged(entry)


def earlier_judgement(workspace: Workspace, registered: Registered, champion: str | None) -> Judged | None:
    """Return the ledger's last word on this version where it still stands: it serves, or the same champion does."""
    for entry in ledger.entries(ledger_url(workspace), registered.model):
        if entry.version == registered.version and entry.decision:
            standing = registered.version if entry.action == "promote" else entry.previous
            return _judged(entry) if standing == champion else None
    return None


def ledger_url(workspace: Workspace) -> str:
    """Return the SQLAlchemy URL of the workspace's ledger."""
    return f"sqlite:///{workspace.ledger}"


def _judged(entry: ledger.Entry) -> Judged:
    if entry.action == "promote":
        outcome = f"version {entry.version} of {entry.model} is the champion now"
    else:
        serves = f"version {entry.previous} stays the champion" if entry.previous else "there is no champion"
        outcome = f"version {entry.version} of {entry.model} was not promoted; {serves}"
    return Judged(str(entry.decision), entry.reasons, entry.facts, outcome)
