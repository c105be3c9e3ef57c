"""Step promote: challenger meets champion on the same test images; the gate decides, the ledger keeps it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmill.cluster.work import on_ray, wait
from segmill.data.packing.packed import PackedSplit
from segmill.data.schema.manifest import manifest_info, read_manifest
from segmill.params import Params, PromotionParams
from segmill.promotion import earlier_ledger as ledger
from segmill.promotion import gate, registry
from segmill.promotion.budget import budget
from segmill.promotion.class_map import common_classes
from segmill.promotion.keys import trusted_keys
from segmill.promotion.score_job import ScoreJob, score_on_ray
from segmill.workspace import Workspace
from tasks.register import Registered
from tasks.stage import recorded_md5

PREDICTIONS = "predictions"  # a folder of the workspace's scratch


@dataclass(frozen=True)
class Judged:
    """The gate's decision on a version, the sentences and figures behind it, and what came of it.

    ``rival``: the version that it was compared with, None where there was none. ``rival_serves``: it stays champion.
    """

    decision: str
    reasons: list[str]
    facts: dict[str, Any]
    outcome: str
    rival: str | None
    rival_serves: bool


def promote(workspace: Workspace, params: Params, uri: str, registered: Registered) -> Judged:
    """Score both models through the registry, each in a process of its own, and move `champion` if the gate passes.

    A version that was judged before against the same champion and under the same settings is not judged again. One
    that serves already is judged against the version that it replaced; if it fails now, it serves until another one
    passes. The version that serves is no challenger any more. The page of the verdict before goes, so that a run which
    ends before it has written its own is not taken for a complete one.

    Raises:
        InputError: the champion knows other classes than the data, and dataset.yaml does not say what became of them.
        SignatureError: a version is not signed, not by a trusted key, or not what was signed.
        InfrastructureError: MLflow or the ledger does not answer, or somebody else promoted meanwhile.
    """
    workspace.page.unlink(missing_ok=True)
    book = ledger_url(workspace)
    seen = ledger.last_number(book, registered.model)
    champion = registry.aliased(uri, registered.model, registry.CHAMPION)
    serving = champion.version if champion else None
    if earlier := earlier_judgement(workspace, registered, serving, params.promotion):
        if serving == registered.version:
            registry.drop_alias(uri, registered.model, registry.CHALLENGER, registered.version)
        return earlier
    rival = _replaced_by(workspace, registered) if serving == registered.version else serving
    shutil.rmtree(workspace.scratch / PREDICTIONS, ignore_errors=True)
    trusted, info = trusted_keys(workspace.root), manifest_info(read_manifest(workspace.manifest))
    scored = [
        on_ray(
            score_on_ray,
            ScoreJob(
                uri=uri,
                model_name=registered.model,
                version=version,
                trusted=trusted,
                packed_dir=workspace.packed,
                sealed=params.split.sealed,
                former_classes=info.former_classes,
                predictions_path=predictions_path(workspace, version) if rival else None,
            ),
        )
        for version in [registered.version, *([rival] if rival else [])]
    ]
    counts = [wait(running) for running in scored]
    groups = PackedSplit(workspace.packed / "test").groups
    known = registry.known_classes(uri, registered.model, rival) if rival else info.class_names
    common = common_classes(info.class_names, known, info.former_classes)
    verdict = gate.decide(
        gate.GateEvidence(
            challenger_counts_NKK=common.of_today(counts[0]),
            champion_counts_NKK=counts[1] if rival else None,
            groups=groups,
            class_names=common.names,
        ),
        policy(params.promotion),
        budget([], groups, alpha=params.promotion.alpha, judgements=params.promotion.judgements, recipe=""),
        seed=params.split.seed,
    )
    passed = verdict.decision == "PASS"
    entry = ledger.append(
        book,
        ledger.EarlierEntry(
            action="promote" if passed else "refuse",
            model=registered.model,
            version=registered.version,
            previous=serving,
            decision=verdict.decision,
            reasons=verdict.reasons,
            facts=verdict.facts,
        ),
        after=seen,
    )
    if passed and serving != registered.version:
        registry.set_alias(uri, registered.model, registry.CHAMPION, registered.version)
    if passed or serving == registered.version:
        registry.drop_alias(uri, registered.model, registry.CHALLENGER, registered.version)
    return _judged(entry, rival)


def policy(settings: PromotionParams) -> gate.GatePolicy:
    """Return what the gate asks for under these settings."""
    guards = settings.guards.model_dump()
    own = settings.model_dump(include={"floor_miou", "min_gain", "confidence", "rule", "goal", "margin", "untestable"})
    return gate.GatePolicy(**own, **guards)


def predictions_path(workspace: Workspace, version: str) -> Path:
    """Return where the predictions of a version on today's test split are kept, if it is one of the last two judged."""
    return workspace.scratch / PREDICTIONS / f"{version}-{recorded_md5(workspace, 'prepare')}.npz"


def earlier_judgement(
    workspace: Workspace, registered: Registered, champion: str | None, settings: PromotionParams
) -> Judged | None:
    """Return the ledger's last word on this version where it still holds.

    It does where the same champion serves as after it, and every setting that the verdict was made with (its facts
    name them) is the same now.
    """
    for entry in ledger.entries(ledger_url(workspace), registered.model):
        if entry.version == registered.version and entry.decision:
            served_after = registered.version if entry.action == "promote" else entry.previous
            if served_after != champion or not _same_settings(entry, settings):
                return None
            judged_as_champion = entry.previous == entry.version
            return _judged(entry, _replaced_by(workspace, registered) if judged_as_champion else entry.previous)
    return None


def _same_settings(entry: ledger.EarlierEntry, settings: PromotionParams) -> bool:
    """Where there was no champion, ``min_gain`` and ``confidence`` decided nothing and are no facts."""
    asked = settings.model_dump()
    return "floor_miou" in entry.facts and all(
        entry.facts[name] == value for name, value in asked.items() if name in entry.facts
    )


def _replaced_by(workspace: Workspace, registered: Registered) -> str | None:
    """Return the champion that the version took the place of; None where there was none."""
    for entry in ledger.entries(ledger_url(workspace), registered.model):
        if (entry.version, entry.action) == (registered.version, "promote") and entry.previous != entry.version:
            return entry.previous
    return None


def ledger_url(workspace: Workspace) -> str:
    """Return the SQLAlchemy URL of the workspace's ledger."""
    return f"sqlite:///{workspace.ledger}"


def _judged(entry: ledger.EarlierEntry, rival: str | None) -> Judged:
    version, model = entry.version, entry.model
    if entry.previous == version:  # it served when it was judged
        how = "passes" if entry.action == "promote" else "does not pass"
        until = "" if entry.action == "promote" else " until another version passes"
        outcome = f"version {version} of {model} {how} under these settings; it stays the champion{until}"
    elif entry.action == "promote":
        outcome = f"version {version} of {model} is the champion now"
    else:
        stays = f"version {entry.previous} stays the champion" if entry.previous else "there is no champion"
        outcome = f"version {version} of {model} was not promoted; {stays}"
    serves = rival is not None and rival == entry.previous and entry.action != "promote"
    return Judged(str(entry.decision), entry.reasons, entry.facts, outcome, rival, serves)
