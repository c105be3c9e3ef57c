"""Verify a version by its passport: hashes and signatures, then all figures again from registry, data and code."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from segmill import tracking
from segmill.cluster.resources import whole_node
from segmill.cluster.work import on_ray, wait
from segmill.data.schema.issues import IssuesFound
from segmill.data.versioning.repository import committed
from segmill.errors import InfrastructureError, InputError, SegmillError
from segmill.params import Params, SplitParams, read_params
from segmill.promotion import gate, passport, registry, signing, verify, versions
from segmill.promotion.class_map import common_classes
from segmill.promotion.heads import examine
from segmill.promotion.keys import SignatureError, TrustedKeys, trusted_keys
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.passport import Passport
from segmill.promotion.score_job import ScoreJob
from segmill.promotion.score_parts import score_on_workers
from segmill.promotion.verify import Check, same, unknown
from segmill.promotion_params import PromotionParams
from segmill.workspace import Workspace
from tasks.inputs import COMPUTATIONS, all_settings, value_changes
from tasks.judging import gate_policy
from tasks.register import PIPELINE_FILES

Settings = TypeVar("Settings", bound=BaseModel)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from segmill.data.schema.manifest import DatasetInfo


@dataclass(frozen=True)
class Subject:
    """A version that is verified: what the registry knows of it, its passport and its files in a private folder.

    ``papers`` holds the passport's files. ``files``: None where they are not what was signed or can't be had, which
    ``fault`` says; nothing of such a version is loaded.
    """

    uri: str
    model: str
    known: registry.Version
    papers: Path
    passport: Passport
    files: Path | None
    fault: SegmillError | None
    trusted: TrustedKeys


def fetch(workspace: Workspace, uri: str, model: str, version: str, to: Path) -> Subject:
    """Fetch a version with its passport into the new private folder ``to``.

    Raises:
        InputError: there is no such version, or it has no passport.
        InfrastructureError: MLflow does not answer.
    """
    trusted, papers = trusted_keys(workspace.root), to / "papers"
    known = registry.read_version(uri, model, version)
    papers.mkdir(parents=True)
    if not passport.fetch(uri, papers, model=model, version=version):
        raise InputError(
            f"version {version} of {model} has no passport: an earlier release registered it, or its run ended before "
            "the report",
            "`segmill retrain` issues one when it judges the version again",
        )
    said = passport.parse((papers / passport.JSON).read_bytes())
    files, fault = None, None
    try:
        files = versions.fetch_verified(uri, model, version, trusted, to=to / "version")
    except InfrastructureError:
        raise
    except SegmillError as error:
        fault = error
    return Subject(uri, model, known, papers, said, files, fault, trusted)


def look_at_hashes(subject: Subject) -> Iterator[Check]:
    """Yield the checks of hashes and signatures, of the version and of its passport."""
    said, known, page = subject.passport, subject.known, subject.papers / passport.HTML
    yield _signature(subject)
    yield same("passport", "model and version", f"{said.model}/{said.version}", f"{subject.model}/{known.version}")
    yield same("passport", "manifest", said.manifest_sha256, passport.manifest_of(known.tags))
    yield same("passport", "run that registered it", said.registered_by, known.run_id)
    found = hashlib.sha256(page.read_bytes()).hexdigest() if page.is_file() else None
    yield same("passport", "report", said.report_sha256, found)
    if subject.files is None:
        state: verify.State = "differs" if isinstance(subject.fault, SignatureError) else "unknown"
        yield Check("version", "files of the version", state, _sentence(subject.fault))
        return
    sizes = [path.stat().st_size for path in subject.files.rglob("*") if path.is_file()]
    said_of_files = f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB, as they were signed"
    yield Check("version", "files of the version", "agrees", said_of_files)
    yield same("version", "ensemble", said.ensemble_sha256, signing.ensemble_digest(subject.files / signing.ENSEMBLE))


def look_at_ledger(workspace: Workspace, params: Params, subject: Subject) -> Iterator[Check]:
    """Yield whether the ledger is whole and holds the verdict that the passport says."""
    model, verdict = subject.model, subject.passport.verdict
    book = workspace_ledger(workspace.root, params.promotion.ledger_url)
    rows = {row.number: row for row in book.rows(model)}
    if not rows:
        where = f"the ledger at {book.address} has no row of {model}; promotion.ledger_url names another"
        yield unknown("ledger", "ledger", where)
        return
    findings = examine(subject.uri, workspace.root, book, model)
    for finding in findings:
        yield Check("ledger", "ledger", "differs", finding)
    if not findings:
        yield Check("ledger", "ledger", "agrees", f"{len(rows)} rows, a whole chain, each signed")
    what, row = f"row {verdict.ledger.number}, the verdict", rows.get(verdict.ledger.number)
    if row is None:
        yield Check("ledger", what, "differs", "the ledger has no such row")
    elif row.taken_over:
        yield unknown("ledger", what, "an earlier release wrote it, which signed nothing")
    else:
        yield same("ledger", f"hash of row {row.number}", verdict.ledger.hash, row.hash)
        written = (subject.passport.version, verdict.decision, verdict.reasons, verdict.facts)
        agrees = written == (row.version, row.decision, row.reasons, row.facts)
        says = f"{row.decision} on version {row.version}, with the reasons and figures of the passport"
        other = f"{row.decision} on version {row.version}, with other reasons or figures than the passport"
        yield Check("ledger", what, "agrees" if agrees else "differs", says if agrees else other)


def recompute(workspace: Workspace, params: Params, subject: Subject) -> Iterator[Check]:
    """Yield the checks of data, recipe, weights, figures and verdict. Ray is connected.

    The data version comes from DVC's cache or remote into a temporary folder; the workspace's own files stay as they
    are.
    """
    said = subject.passport
    yield from _recipe(workspace, subject)
    if subject.files is not None:
        origins = passport.read_origins(subject.files / signing.ENSEMBLE, list(said.weights))
        yield from verify.compare_origins(said.weights, origins)
        yield from _sources(subject)
    workspace.scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=workspace.scratch) as name:
        packed = Path(name) / "packed"
        try:
            yield from _data(workspace, params, said, Path(name), packed)
        except IssuesFound as fault:
            yield Check("data", "findings of validation", "differs", f"it is refused now: {_sentence(fault)}")
        except SegmillError as fault:
            yield unknown("data", "data version", f"{said.data.version[:8]} can't be used: {_sentence(fault)}")
        if packed.is_dir() and subject.files is not None:
            yield from _measured(subject, packed)
            return
    lacking = "its data version" if subject.files is not None else "its files"
    what = f"figures of the ensemble and {len(said.figures.members)} members"
    yield unknown("figures", what, f"{lacking} can't be used")
    yield unknown("verdict", "verdict", f"{lacking} can't be used")


def _signature(subject: Subject) -> Check:
    what = "signature of the passport"
    try:
        key = passport.signer(subject.papers, subject.trusted)
    except SignatureError as fault:
        return Check("passport", what, "differs", _sentence(fault))
    return Check("passport", what, "agrees", f"by {key.name}, key {key.id}")


def _recipe(workspace: Workspace, subject: Subject) -> Iterator[Check]:
    """Yield whether the run's params.yaml gives the recorded settings, and whether the recorded code is installed."""
    from segmill.fingerprint import fingerprints

    said = subject.passport
    recipe = said.recipe
    text = committed(workspace.root, "params.yaml", recipe.git_commit)
    if text is None:
        text = tracking.read_artifact(subject.uri, said.run_id, f"{PIPELINE_FILES}/params.yaml")
    if text is None:
        yield unknown(
            "recipe", "settings", f"params.yaml is neither in commit {recipe.git_commit} nor in run {said.run_id}"
        )
    else:
        try:
            missing = said.verdict.facts.get("missing_members", {})
            found = all_settings(_params_of(text).without_members(missing))
            yield verify.compare_settings(recipe, found, value_changes(recipe.settings, found))
        except InputError as fault:
            yield unknown("recipe", "settings", f"this segmill can't read its params.yaml: {fault}")
    code = fingerprints(COMPUTATIONS)
    texts = {stage: code[_computation(stage, values)] for stage, values in recipe.settings.items()}
    yield verify.compare_code(recipe, passport.code_hashes(texts))


def _sources(subject: Subject) -> Iterator[Check]:
    """Yield whether the files that the weights came from have the recorded sha256, where they are here."""
    for name, origin in subject.passport.weights.items():
        if origin.sha256 is None:
            continue
        what, kind = f"source of the weights of {name}", origin.source.partition(":")[0]
        if kind not in ("file", "package", "champion"):
            yield unknown("weights", what, f"{origin.source} is a download, and nothing is downloaded for this")
            continue
        try:
            yield same("weights", what, origin.sha256, _source_sha256(subject, name, origin.source))
        except SegmillError as fault:
            yield unknown("weights", what, _sentence(fault))


def _source_sha256(subject: Subject, member: str, source: str) -> str | None:
    """Return the sha256 of the weights of a ``file:PATH``, ``package:NAME==VERSION`` or ``champion:MODEL/VERSION``."""
    kind, _, named = source.partition(":")
    if kind != "champion":
        from segmill.models.weights import resolve

        found = resolve(f"{kind}:{named.partition('==')[0] if kind == 'package' else named}", "")
        if found.source != source:
            raise InputError(f"here it is {found.source}, and the recorded one was {source}")
        return found.sha256
    model, _, version = named.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="segmill-source-") as folder:
        to = Path(folder) / member
        if not versions.fetch_member(subject.uri, model, version, member, subject.trusted, to=to):
            raise InputError(f"version {version} of {model} holds no member {member}")
        return hashlib.sha256((to / "weights.safetensors").read_bytes()).hexdigest()


def _params_of(text: bytes) -> Params:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(text)
        return read_params(path)


def _computation(stage: str, settings: dict[str, Any]) -> str:
    base, _, member = stage.partition("@")
    return f"{base}-{settings['members'][member]['kind']}" if member else base


def _data(workspace: Workspace, params: Params, said: Passport, folder: Path, packed: Path) -> Iterator[Check]:
    """Yield the checks of the data version, and pack its test images into ``packed`` as prepare does."""
    from segmill.data.packing.pack import pack
    from segmill.data.splitting.shares import SplitShares
    from segmill.data.validation.checks import validate_dataset
    from segmill.data.versioning.versions import store

    raw, manifest = folder / "raw", folder / "manifest.parquet"
    with store(workspace.root, params.data.remote) as files:
        files.write(said.data.version, raw)
    yield Check("data", "data version", "agrees", f"{said.data.version[:8]}, from DVC's cache or remote")
    split, accept = _settings(SplitParams, said.data.split), said.data.accept
    shares = SplitShares(split.val, split.test, split.seed)
    validate_dataset(raw, manifest, shares=shares, accept=accept, sealed=split.sealed, calibration=split.calibration)
    found = passport.read_data(manifest, version=said.data.version, split=said.data.split, accept=accept)
    yield from verify.compare_data(said.data, found)
    _keep_test(manifest, split.calibration)
    pack(raw, manifest, packed)  # test images are packed as they are, whatever `prepare` says


def _keep_test(manifest: Path, calibration: Sequence[str]) -> None:
    """Leave the test rows in a manifest, without those of groups that calibrate."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from segmill.data.schema.manifest import read_manifest, write_manifest

    table = read_manifest(manifest)
    test = pc.and_(pc.equal(table["split"], "test"), pc.invert(pc.is_in(table["group"], pa.array(calibration, "str"))))
    write_manifest(manifest, table.filter(test))


def _measured(subject: Subject, packed: Path) -> Iterator[Check]:
    """Yield the checks of all figures and of the verdict; the registered version predicts with its own code."""
    from segmill.data.packing.packed import PackedSplit, read_pack
    from segmill.data.packing.sealed import sealed_rows
    from segmill.evaluation.job import EvaluateJob
    from segmill.evaluation.scoring import Scored, read_counts
    from segmill.evaluation.shell import start_evaluation

    assert subject.files is not None
    said, scores = subject.passport, packed.with_name("scores")
    device = on_ray(passport.look_around, registry.REQUIREMENTS, whole_node())
    sealed = _settings(SplitParams, said.data.split).sealed
    job = EvaluateJob(
        ensemble_dir=subject.files / signing.ENSEMBLE, packed_dir=packed, out_dir=scores, overlays=0, sealed=sealed
    )
    evaluated = start_evaluation(job)
    own = _counts(subject, said.version, packed)
    wait(evaluated)
    environment = wait(device)
    counted = read_counts(scores / "counts.npz")
    shown = own[~sealed_rows(PackedSplit(packed / "test").groups, sealed)]
    yield _served_as_measured(int(abs(shown - counted.ensemble).sum()) // 2, int(shown.sum()))
    ours = Scored(counted.ids, counted.groups, shown, counted.members)
    figures = passport.figures(ours, read_pack(packed).class_names)
    yield from verify.compare_figures(
        said.figures, figures, device_then=said.environment.device, device_now=environment.device
    )
    yield from verify.compare_detection(
        said.detection,
        json.loads((scores / "metrics.json").read_text()).get("anomaly"),
        same_device=said.environment.device == environment.device,
    )
    yield _environment(said.environment, environment)
    yield from _verdict(subject, packed, own)


def _counts(subject: Subject, version: str, packed: Path) -> NDArray[np.int64]:
    """Return what a version predicts with its own code on all test images, the sealed ones too.

    N x C x C, C being the classes that it has in common with the data.
    """
    job = ScoreJob(
        uri=subject.uri,
        model_name=subject.model,
        version=version,
        trusted=subject.trusted,
        packed_dir=packed,
        former_classes=_info(packed).former_classes,
    )
    ((counts,),) = score_on_workers([job])
    return counts


def _info(packed: Path) -> DatasetInfo:
    from segmill.data.schema.manifest import manifest_info, read_manifest

    return manifest_info(read_manifest(packed.with_name("manifest.parquet")))


def _served_as_measured(apart: int, pixels: int) -> Check:
    what = "predictions with the version's own code"
    if apart == 0:
        return Check("figures", what, "agrees", f"the same as the installed segmill's on {pixels:,} pixels")
    says = f"other than the installed segmill's on {apart:,} of {pixels:,} pixels"
    return Check("figures", what, "agrees" if apart <= pixels // 10_000 else "differs", says)


def _environment(then: passport.Environment, now: passport.Environment) -> Check:
    if then == now:
        return Check("environment", "environment", "agrees", f"Python {now.python}, {now.device}")
    changes = value_changes(then.model_dump(), now.model_dump())
    return unknown("environment", "environment", f"this one is another ({', '.join(changes)}), so figures may differ")


def _verdict(subject: Subject, packed: Path, own: NDArray[np.int64]) -> Iterator[Check]:
    """Yield whether the gate gives the recorded verdict again, from counts of both versions on the same images."""
    from segmill.data.packing.packed import PackedSplit
    from segmill.data.packing.sealed import sealed_rows
    from segmill.data.schema.slices import slice_values

    said, verdict = subject.passport, subject.passport.verdict
    rival = None
    if verdict.compared_with is not None:
        try:
            rival = _counts(subject, verdict.compared_with, packed)
        except SegmillError as fault:
            why = f"version {verdict.compared_with}, which it was compared with, can't be used: {_sentence(fault)}"
            yield unknown("verdict", "verdict", why)
            return
    try:
        asked = _settings(PromotionParams, verdict.policy)
    except InputError as fault:
        yield unknown("verdict", "verdict", _sentence(fault))
        return
    split, settings = PackedSplit(packed / "test"), _settings(SplitParams, said.data.split)
    judged = sealed_rows(split.groups, settings.sealed) | (not settings.sealed)
    ids, groups = ([one for one, used in zip(all_, judged, strict=True) if used] for all_ in (split.ids, split.groups))
    info = _info(packed)
    known = registry.known_classes(subject.uri, subject.model, verdict.compared_with or said.version)
    common = common_classes(info.class_names, known, info.former_classes)
    evidence = gate.GateEvidence(
        challenger_counts_NKK=common.of_today(own[judged]),
        champion_counts_NKK=None if rival is None else rival[judged],
        groups=groups,
        class_names=common.names,
        slices=slice_values(packed.with_name("manifest.parquet"), ids, asked.guards.slices),
        sealed=bool(settings.sealed),
    )
    yield from verify.judge_again(verdict, gate_policy(asked), evidence, asked, seed=settings.seed)


def _settings(kind: type[Settings], recorded: dict[str, Any]) -> Settings:
    """Return recorded values as settings; InputError where they are none of this release."""
    try:
        return kind.model_validate(recorded)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"this segmill can't read the recorded settings ({kind.__name__}: {key})") from None


def _sentence(fault: SegmillError | None) -> str:
    return " ".join(str(fault).split())
