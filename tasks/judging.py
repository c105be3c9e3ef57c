"""What the gate is given about one version, and its verdict: counts of both models, the budget, other measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segmill.cluster.work import on_ray, wait
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.sealed import SplitPart, open_part, sealed_part
from segmill.data.schema.manifest import DatasetInfo, manifest_info, read_manifest
from segmill.data.versioning.dvc_adapter import repository
from segmill.errors import InputError
from segmill.evaluation.scoring import read_counts
from segmill.metrics.intervals import LEAST_GROUPS, gain_interval
from segmill.metrics.judging import iou, miou
from segmill.params import Params, PromotionParams
from segmill.promotion import gate, history, registry
from segmill.promotion.budget import GateBudget, budget, group_id, groups_needed
from segmill.promotion.class_map import CommonClasses
from segmill.promotion.evidence import Kept, counts_of, refuse_another_model
from segmill.promotion.keys import SignatureError, trusted_keys
from segmill.promotion.latency import LatencyJob, latency_on_ray
from segmill.promotion.rows import Entry, LedgerRow
from segmill.promotion.score_job import ScoreJob
from segmill.promotion.versions import check_signed, model_bytes
from segmill.workspace import Workspace
from tasks.comparable import comparable_classes, slices_of
from tasks.inputs import all_settings
from tasks.stage import recorded_md5

Counts = NDArray[np.int64]
PREDICTIONS = "predictions"  # a folder of the workspace's scratch
OF_PERSONS = {"approval", "approval_days", "ledger_url"}  # keys of promotion: that change no verdict


@dataclass(frozen=True, kw_only=True)
class Case:
    """A challenger and the champion that it meets, None where none serves; by the rows of the ledger until now."""

    workspace: Workspace
    params: Params
    uri: str
    model: str
    challenger: str
    rows: Sequence[LedgerRow]

    @property
    def champion(self) -> str | None:
        return self.rows[-1].champion if self.rows else None

    def manifests(self) -> dict[str, str]:
        """Return version -> sha256 of its signed manifest; SignatureError where one is not to be used."""
        trusted = trusted_keys(self.workspace.root)
        versions = [self.challenger, *([self.champion] if self.champion else [])]
        return {version: check_signed(self.uri, self.model, version, trusted) for version in versions}

    def info(self) -> DatasetInfo:
        """Return what dataset.yaml says of the checked set."""
        return manifest_info(read_manifest(self.workspace.manifest))

    def common(self) -> CommonClasses:
        """Return the classes that the data and the champion both have; InputError where that can't be known."""
        return comparable_classes(self.workspace, self.uri, self.model, self.champion)

    def job(self, part: Literal["open", "sealed"], *splits: str) -> ScoreJob:
        return ScoreJob(
            uri=self.uri, model_name=self.model, version=self.challenger, trusted=trusted_keys(self.workspace.root),
            packed_dir=self.workspace.packed, splits=splits, sealed=self.params.split.sealed, part=part,
            former_classes=self.info().former_classes,
        )  # fmt: skip


def judge(case: Case) -> gate.Verdict:
    """Collect what the gate asks for and let it decide; ``facts`` say also what the verdict depends on.

    Besides the gate's own facts: ``judged`` (test groups were read), ``recipe``, ``settings``, ``sealed``,
    ``manifest_sha256``, ``known_groups`` (ids of all test groups), ``pixels_apart`` (see ``refuse_another_model``).

    Raises:
        InputError, SignatureError, SegmillError, InfrastructureError: as ``promote``.
    """
    workspace, settings = case.workspace, case.params.promotion
    manifests, sealed = case.manifests(), bool(case.params.split.sealed)
    kept = Kept(workspace.scratch / PREDICTIONS)
    kept.forget_others(list(manifests.values()))
    screened, shown = _screens(case), case.champion is not None and not sealed
    splits = ["test", "val"] if screened else ["test"]
    digests = [images_digest(workspace, case.params, split) for split in splits]
    asked = manifests if shown or screened else {case.challenger: manifests[case.challenger]}
    scored = counts_of(asked, case.job("open", *splits), digests, kept, predictions=shown)
    counts, on_val = ([one[number] for one in scored] for number in (0, -1))
    evaluated = read_counts(workspace.reports / "counts.npz")
    about: dict[str, Any] = {
        "recipe": recipe(workspace, case.params),
        "settings": gate_settings(case.params),
        "sealed": sealed,
        "manifest_sha256": manifests[case.challenger],
        "champion_manifest_sha256": manifests[case.champion] if case.champion else None,
        "known_groups": sorted({group_id(group) for group in PackedSplit(workspace.packed / "test").groups}),
        **refuse_another_model(counts[0], evaluated.ensemble, case.challenger),
    }
    if measured := last_measure(case.rows, case.champion):
        about["since_promotion"] = {"version": case.champion, **measured.facts}
    common = case.common()
    counts = [common.of_today(counts[0]), *counts[1:]]
    left = budget(
        history.judgements(case.rows), _judged_part(case).groups, alpha=settings.alpha,
        judgements=settings.judgements, recipe=about["recipe"],
    )  # fmt: skip
    about |= _of_budget(left)
    if shown:
        about |= _compared(counts, evaluated.groups, common, settings.confidence, case.params.split.seed)
    policy = gate_policy(settings)
    if screened:
        groups = PackedSplit(workspace.packed / "val").groups
        worth, said = gate.promising(common.of_today(on_val[0]), on_val[1], groups, policy)
        if not worth:
            facts = {"rule": settings.rule, "alpha_spent": 0.0, **about, "judged": False}
            return gate.Verdict("INCONCLUSIVE", [said], facts)
    evidence = _evidence(case, counts, manifests, common)
    verdict = gate.decide(evidence, policy, left, seed=case.params.split.seed)
    judged = verdict.decision != "UNDECIDABLE"
    return replace(verdict, facts={**about, **verdict.facts, "judged": judged})


def _judged_part(case: Case) -> SplitPart:
    """Return the test samples that the gate judges on: the sealed ones where any are, else all."""
    split, sealed = PackedSplit(case.workspace.packed / "test"), case.params.split.sealed
    return sealed_part(split, sealed) if sealed else open_part(split, ())


def _evidence(
    case: Case, counts: Sequence[Counts], manifests: Mapping[str, str], common: CommonClasses
) -> gate.GateEvidence:
    """Return what was measured on these samples; ``counts`` are those of the open ones."""
    part, sealed = _judged_part(case), bool(case.params.split.sealed)
    if sealed:
        (own,), *others = counts_of(manifests, case.job("sealed", "test"), [""], None, predictions=False)
        counts = [common.of_today(own), *(one for (one,) in others)]
    guards, both = case.params.promotion.guards, case.champion is not None
    return gate.GateEvidence(
        challenger_counts_NKK=counts[0],
        champion_counts_NKK=counts[1] if both else None,
        groups=part.groups,
        class_names=common.names,
        slices=slices_of(case.workspace, case.params, part.ids),
        latency_ms=_latency(case, manifests) if both and guards.latency_ratio is not None else None,
        bytes=_bytes(case, manifests) if both and guards.size_ratio is not None else None,
        sealed=sealed,
    )


def _latency(case: Case, manifests: Mapping[str, str]) -> tuple[list[float], list[float]]:
    return wait(on_ray(latency_on_ray, LatencyJob(job=case.job("open", "test"), versions=tuple(manifests))))


def _bytes(case: Case, manifests: Mapping[str, str]) -> tuple[int, int]:
    trusted = trusted_keys(case.workspace.root)
    sizes = [model_bytes(case.uri, case.model, version, trusted) for version in manifests]
    return sizes[0], sizes[1]


def _screens(case: Case) -> bool:
    """Tell whether val says first if the challenger is worth a judgement on test."""
    settings = case.params.promotion
    asked = settings.rule == "lifetime" and settings.screen and case.champion is not None
    return asked and len(PackedSplit(case.workspace.packed / "val")) > 0


def _compared(
    counts: Sequence[Counts], groups: Sequence[str], common: CommonClasses, confidence: float, seed: int
) -> dict[str, Any]:
    """Return the figures of both models on the open test images, for people: whatever the gate decides and reads."""
    new, old = counts
    gain = gain_interval(new, old, groups, confidence=confidence, seed=seed)
    return {
        "class_names": list(common.names),
        "challenger_miou": _number(miou(new)),
        "champion_miou": _number(miou(old)),
        "champion_iou": [_number(float(value)) for value in iou(old)],
        "gain": _number(gain.estimate),
        "gain_low": _number(gain.low),
        "gain_high": _number(gain.high),
    }


def _of_budget(left: GateBudget) -> dict[str, Any]:
    return {
        "set_number": left.set_number, "judgements_left": left.left, "passes": left.passes,
        "changes_by_people": left.changes_by_people, "level": left.level, "groups": len(left.groups),
        "renewal": left.renewal(),
    }  # fmt: skip


def _number(value: float) -> float | None:
    """NaN is no JSON: say None."""
    return None if np.isnan(value) else value


def measured_since(case: Case) -> Entry | None:
    """Return the gain of the champion over the version that it took the place of, on groups that arrived since.

    Neither version was chosen by these groups, so the figure is unbiased; the gain at the promotion is not. None where
    the champion was not promoted by the gate of this release, fewer than LEAST_GROUPS groups arrived, the same groups
    were measured already, or one of the two versions can't be used any more.

    Raises InfrastructureError where MLflow does not answer or Ray lost the work.
    """
    move = next((row for row in reversed(case.rows) if row.champion != row.previous), None)
    if move is None or move.action != "promote" or move.previous is None or "known_groups" not in move.facts:
        return None
    split, sealed = PackedSplit(case.workspace.packed / "test"), set(case.params.split.sealed)
    known = set(move.facts["known_groups"])
    arrived = sorted({group for group in split.groups if group not in sealed and group_id(group) not in known})
    last = last_measure(case.rows, move.version)
    if len(arrived) < LEAST_GROUPS or (last and last.facts["measured_groups"] == sorted(map(group_id, arrived))):
        return None
    trusted, classes = trusted_keys(case.workspace.root), case.info().class_names
    try:
        versions = {one: check_signed(case.uri, case.model, one, trusted) for one in (move.version, move.previous)}
        if any(registry.known_classes(case.uri, case.model, one) != classes for one in versions):
            return None
        job = replace(case.job("open", "test"), groups=tuple(arrived))
        (new,), (old,) = counts_of(versions, job, [""], None, predictions=False)
    except (InputError, SignatureError):
        return None
    groups = [group for group in split.groups if group in arrived]
    settings = case.params.promotion
    gain = gain_interval(new, old, groups, confidence=settings.confidence, seed=case.params.split.seed)
    said = (
        f"On {gain.groups} test groups that arrived since its promotion version {move.version} gains "
        f"{gain.estimate:+.4f} mIoU over version {move.previous}, with {settings.confidence:.0%} confidence between "
        f"{gain.low:+.4f} and {gain.high:+.4f}."
    )
    facts = {
        "against": move.previous, "samples": len(groups), "groups": gain.groups, "confidence": settings.confidence,
        "gain": _number(gain.estimate), "gain_low": _number(gain.low), "gain_high": _number(gain.high),
        "measured_groups": sorted(map(group_id, arrived)),
    }  # fmt: skip
    return Entry(action="measure", version=move.version, reasons=[said], facts=facts)


def last_measure(rows: Sequence[LedgerRow], version: str | None) -> LedgerRow | None:
    """Return the last row that measured the gain of ``version`` since its promotion."""
    return next((row for row in reversed(rows) if row.action == "measure" and row.version == version), None)


def gate_state(workspace: Workspace, params: Params, rows: Sequence[LedgerRow]) -> dict[str, Any] | None:
    """Return what is left of the test set's judgements, and what the next one takes; None before the first run.

    Keys: rule, set_number, judgements, judgements_left, passes, level, groups, groups_needed (None where no judgement
    is left) and renewal, a sentence.
    """
    if not (workspace.packed / "test" / "index.parquet").is_file():
        return None
    settings, sealed = params.promotion, params.split.sealed
    names = set(PackedSplit(workspace.packed / "test").groups)
    groups = sorted(names & set(sealed)) if sealed else sorted(names)
    if not groups:
        return None
    left = budget(history.judgements(rows), groups, alpha=settings.alpha, judgements=settings.judgements, recipe="")
    level = left.level if settings.rule == "lifetime" else gate_policy(settings).plain_level
    return {
        "rule": settings.rule,
        "set_number": left.set_number,
        "judgements": settings.judgements,
        "judgements_left": left.left,
        "passes": left.passes,
        "level": level,
        "groups": len(left.groups) if settings.rule == "lifetime" else len(groups),
        "groups_needed": groups_needed(level) if level > 0 else None,
        "renewal": left.renewal(),
    }


def gate_policy(settings: PromotionParams) -> gate.GatePolicy:
    """Return what the gate asks for under these settings."""
    own = settings.model_dump(include={"floor_miou", "min_gain", "confidence", "rule", "goal", "margin", "untestable"})
    return gate.GatePolicy(**own, **settings.guards.model_dump())


def gate_settings(params: Params) -> dict[str, Any]:
    """Return the settings that a verdict depends on, as JSON has them."""
    settings = params.promotion.model_dump(mode="json", exclude=OF_PERSONS)
    return settings | {"sealed": sorted(set(params.split.sealed))}


def recipe(workspace: Workspace, params: Params) -> str:
    """Return the sha256 of what people decide about a version: all settings and the code, not the data."""
    code = {
        str(path.relative_to(workspace.code)): path.read_text()
        for path in workspace.code.rglob("*.*")
        if path.is_file()
    }
    return hashlib.sha256(json.dumps([all_settings(params), code], sort_keys=True).encode()).hexdigest()


def images_digest(workspace: Workspace, params: Params, split: str) -> str:
    """Return a sha256 that changes with a split's images, masks, groups or classes, or with what is sealed."""
    md5 = recorded_md5(workspace, "prepare")
    with repository(workspace.root) as repo:
        listing = repo.cache_path(f"{md5}.dir")  # DVC's list of the folder's files
        content = json.loads(listing.read_text()) if listing.is_file() else md5
    if isinstance(content, list):
        content = sorted((one["relpath"], one["md5"]) for one in content if one["relpath"].startswith(f"{split}/"))
    info, sealed = manifest_info(read_manifest(workspace.manifest)), sorted(params.split.sealed)
    what = [split, content, info.class_names, info.former_classes, info.ignore_id, sealed]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def predictions_of(workspace: Workspace, params: Params, manifest_sha256: str) -> Path:
    """Return where the predictions of a version on today's open test images are, if it met another one last."""
    images = images_digest(workspace, params, "test")
    return Kept(workspace.scratch / PREDICTIONS).predictions(manifest_sha256, images)
