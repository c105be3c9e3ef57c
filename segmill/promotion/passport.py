"""The passport of a version: what it was made from, how it was measured and judged; a signed JSON beside its report.

It is frozen when the verdict is given and stored in the version's own folder of the registry, so that whoever has the
registry finds it again: ``passport/passport.json``, its signature, and the report it belongs to. docs/promotion.md
lists its keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from segmill.errors import InputError
from segmill.mlflow_pages import OF_TRAINING, pages
from segmill.promotion.keys import PublicKey, SignatureError, SigningKey, TrustedKeys
from segmill.promotion.registry import LOGGED_TAG

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

    from segmill.metrics.intervals import Interval

FORMAT = 1
FOLDER = "passport"  # in the version's folder
JSON, HTML, SIGNATURE = "passport.json", "passport.html", "passport.sig"
CONFIDENCE, SEED = 0.95, 0  # of the intervals: those of the report
LEAKS = ("exact_duplicate", "near_duplicate", "group_leak")
_PURPOSE = b"segmill passport\n"  # no other signature can be passed off as a passport's


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreFigure(_Part):
    """A score in 0..1 with its interval; None where no pixel was counted."""

    value: float | None
    low: float | None
    high: float | None


class Scores(_Part):
    """The scores of one model; ``iou`` by class name."""

    miou: ScoreFigure
    mdice: ScoreFigure
    accuracy: ScoreFigure
    iou: dict[str, ScoreFigure]


class Figures(_Part):
    """What was measured on test: ``images`` in ``groups``, every interval at ``confidence``."""

    confidence: float
    images: int
    groups: int
    ensemble: Scores
    members: dict[str, Scores]


class SplitContents(_Part):
    """One split. ``sha256``: of a line "id image_sha256 mask_sha256" per sample, sorted."""

    samples: int
    groups: int
    sha256: str


class Finding(_Part):
    """A kind of issue that validation found, in how many files. ``leak``: it is one between splits."""

    kind: str
    severity: str
    files: int
    accepted: bool
    leak: bool


class Data(_Part):
    """The labelled set. ``version``: DVC's md5 of its folder; ``split``: the settings; ``accept``: of data.accept."""

    version: str
    classes: list[str]
    split: dict[str, Any]
    splits: dict[str, SplitContents]
    accept: list[str]
    findings: list[Finding]


class Recipe(_Part):
    """What the version was made with: settings and md5 of the code per stage, sha256 of each module of that code."""

    settings: dict[str, dict[str, Any]]
    code: dict[str, str]
    modules: dict[str, str]
    git_commit: str


class WeightsOrigin(_Part):
    """Where a member's weights came from before its training; ``sha256``: of that file, None for random weights."""

    source: str
    sha256: str | None


class VerdictRow(_Part):
    """The row of the ledger that holds the verdict; ``hash`` is "" in a ledger that has none."""

    number: int
    hash: str


class RecordedVerdict(_Part):
    """The gate's verdict as the ledger holds it, and the settings of ``promotion`` that it was given under."""

    decision: str
    reasons: list[str]
    facts: dict[str, Any]
    compared_with: str | None
    policy: dict[str, Any]
    ledger: VerdictRow


class Environment(_Part):
    """Where the figures were measured: ``packages`` name to version, ``device`` the processor or GPU."""

    python: str
    platform: str
    device: str
    packages: dict[str, str]


class Passport(_Part):
    """All that is known of one version when it was judged.

    ``run_id``: of the run that judged it; ``registered_by``: of the run that registered it, which may be an earlier
    one; ``warm_started_from``: champions, as "model/version"; ``detection``: what its anomaly detector finds on
    test, as metrics.json has it, None where it has none.
    """

    format: int = FORMAT
    model: str
    version: str
    issued: str
    run_id: str
    registered_by: str
    manifest_sha256: str
    ensemble_sha256: str
    report_sha256: str
    data: Data
    recipe: Recipe
    weights: dict[str, WeightsOrigin]
    warm_started_from: list[str]
    figures: Figures
    detection: dict[str, Any] | None = None
    verdict: RecordedVerdict
    environment: Environment


def parse(content: bytes) -> Passport:
    """Return the passport in the bytes of its JSON; InputError where they are none that this release reads."""
    try:
        facts = json.loads(content)
        if isinstance(facts, dict) and isinstance(facts.get("format"), int) and facts["format"] > FORMAT:
            raise InputError(
                f"the passport has format {facts['format']}, which this segmill does not read", "upgrade it"
            )
        return Passport.model_validate(facts)
    except (ValueError, ValidationError) as error:
        where = error.errors()[0]["loc"] if isinstance(error, ValidationError) else ("JSON",)
        raise InputError(
            f"the passport can't be read: {'.'.join(map(str, where))} is not as segmill writes it"
        ) from None


def split_parts(manifest: pyarrow.Table) -> dict[str, SplitContents]:
    """Return what is in each split of a manifest."""
    from segmill.data.schema.manifest import SPLITS

    columns = ("split", "group", "id", "image_sha256", "mask_sha256")
    rows = list(zip(*(manifest[name].to_pylist() for name in columns), strict=True))
    parts = {}
    for split in sorted({row[0] for row in rows}, key=SPLITS.index):
        own = sorted(row[1:] for row in rows if row[0] == split)
        lines = sorted(f"{sample} {image} {mask}\n" for _, sample, image, mask in own)
        sha256 = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
        parts[split] = SplitContents(samples=len(own), groups=len({row[0] for row in own}), sha256=sha256)
    return parts


def read_data(manifest: Path, *, version: str, split: Mapping[str, Any], accept: Sequence[str]) -> Data:
    """Return what a manifest, which validation wrote, says of a version of the labelled set.

    Args:
        manifest: the file.
        version: DVC's md5 of the set's folder.
        split, accept: the settings that it was validated with.
    """
    from segmill.data.schema.issues import read_issues
    from segmill.data.schema.manifest import manifest_info, read_manifest

    table = read_manifest(manifest)
    findings = [
        Finding(
            kind=issue.kind, severity=issue.severity, files=len(issue.files), accepted=issue.kind in accept,
            leak=issue.kind in LEAKS,
        )
        for issue in read_issues(manifest)
    ]  # fmt: skip
    return Data(
        version=version,
        classes=list(manifest_info(table).class_names),
        split=dict(split),
        splits=split_parts(table),
        accept=list(accept),
        findings=sorted(findings, key=lambda one: (one.kind, one.severity)),
    )


def measure(counts_NKK: NDArray[np.int64], groups: Sequence[str], class_names: Sequence[str]) -> Scores:
    """Return the scores of one model with their intervals, by its confusion counts per image (rows truth)."""
    from segmill.metrics.intervals import iou_intervals, score_intervals

    means = score_intervals(counts_NKK, groups, confidence=CONFIDENCE, seed=SEED)
    classes = iou_intervals(counts_NKK, groups, confidence=CONFIDENCE, seed=SEED)
    iou = {name: _figure(one) for name, one in zip(class_names, classes, strict=True)}
    return Scores(**{name: _figure(one) for name, one in means.items()}, iou=iou)


class CountedOnTest(Protocol):
    """Confusion counts per image of an ensemble and its members, as ``segmill.evaluation.scoring.Scored`` has them."""

    @property
    def groups(self) -> list[str]: ...
    @property
    def ensemble(self) -> NDArray[np.int64]: ...
    @property
    def members(self) -> dict[str, NDArray[np.int64]]: ...


def figures(counted: CountedOnTest, class_names: Sequence[str]) -> Figures:
    """Return the figures of a passport from what was counted on test."""
    groups = counted.groups
    return Figures(
        confidence=CONFIDENCE,
        images=len(groups),
        groups=len(set(groups)),
        ensemble=measure(counted.ensemble, groups, class_names),
        members={name: measure(counts, groups, class_names) for name, counts in counted.members.items()},
    )


def code_hashes(texts: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the keys ``code`` and ``modules`` of a recipe, from the stages' texts of ``fingerprints``."""
    code = {stage: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() for stage, text in texts.items()}
    modules = dict(sorted({line.rpartition(" ")[::2] for text in texts.values() for line in text.splitlines()}))
    return {"code": code, "modules": modules}


def read_origins(ensemble_dir: Path, members: Sequence[str]) -> dict[str, WeightsOrigin]:
    """Return where the weights of each of these members came from that an ensemble's folder holds."""
    files = {name: ensemble_dir / "members" / name / "member.json" for name in members}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.is_file()}
    known = {name: facts.get("encoder_weights") or {"source": "none", "sha256": None} for name, facts in found.items()}
    return {name: WeightsOrigin(source=one["source"], sha256=one["sha256"]) for name, one in known.items()}


def champions_begun_with(weights: Mapping[str, WeightsOrigin]) -> list[str]:
    """Return the versions that members were warm-started from."""
    sources = {one.source.partition(":") for one in weights.values()}
    return sorted(name for kind, _, name in sources if kind == "champion")


def look_around(packages: Sequence[str]) -> Environment:
    """Return the environment of this process, with the GPU that it may use. Imports torch."""
    import platform

    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        device=device,
        packages={name: found for name in sorted(packages) if (found := _installed(name))},
    )


def manifest_of(tags: Mapping[str, str]) -> str:
    """Return the sha256 of the signed manifest that a version's tags name; "" for a version that is not signed."""
    return str(json.loads(tags.get("version_signature", "{}")).get("manifest_sha256", ""))


def issue(passport: Passport, report: Path, key: SigningKey, folder: Path) -> None:
    """Write passport, signature and report into ``folder``; the passport names ``report``'s sha256 already."""
    content = (passport.model_dump_json(indent=1) + "\n").encode()
    (folder / JSON).write_bytes(content)
    signature = {"key": key.public.id, "signature": key.sign(_PURPOSE + content)}
    (folder / SIGNATURE).write_text(json.dumps(signature) + "\n")
    (folder / HTML).write_bytes(report.read_bytes())


def signer(folder: Path, trusted: TrustedKeys) -> PublicKey:
    """Return who signed the passport in ``folder``; SignatureError where that is nobody who is trusted."""
    try:
        facts = json.loads((folder / SIGNATURE).read_bytes())
        key_id, signature = str(facts["key"]), str(facts["signature"])
    except FileNotFoundError:
        raise SignatureError("it is not signed") from None
    except (ValueError, KeyError, TypeError):
        raise SignatureError("its signature can't be read") from None
    return trusted.signer(_PURPOSE + (folder / JSON).read_bytes(), key_id, signature)


def store(uri: str, folder: Path, *, model: str, version: str) -> None:
    """Put the passport in ``folder`` into the version's folder of the registry, over the one that is there.

    Raises InfrastructureError where MLflow does not answer.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from segmill.tracking import reaching

    with reaching(uri) as client:
        source = client.get_model_version_download_uri(model, version)
        repository = get_artifact_repository(source, tracking_uri=uri)
        for name in (HTML, SIGNATURE, JSON):  # the JSON last: with it the passport is there
            repository.log_artifact(os.fspath(folder / name), FOLDER)


def fetch(uri: str, to: Path, *, model: str, version: str) -> bool:
    """Copy a version's passport from the registry into ``to``; False where it has none.

    Raises InfrastructureError where MLflow does not answer.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from segmill.tracking import reaching

    with reaching(uri) as client, tempfile.TemporaryDirectory() as name:
        source = client.get_model_version_download_uri(model, version)
        repository = get_artifact_repository(source, tracking_uri=uri)
        found = {Path(entry.path).name for entry in repository.list_artifacts(FOLDER)}
        if JSON not in found:
            return False
        for file in sorted(found & {JSON, HTML, SIGNATURE}):
            got = repository.download_artifacts(f"{FOLDER}/{file}", name)
            (to / file).write_bytes(Path(got).read_bytes())
    return True


def page(uri: str, *, model: str, version: str) -> str:
    """Return the address of MLflow's page that shows the passport of a version.

    Raises InfrastructureError where MLflow does not answer.
    """
    from segmill.tracking import reaching

    with reaching(uri) as client:
        found = client.get_model_version(model, version)
        run = client.get_run(found.run_id).info
        source = client.get_model_version_download_uri(model, version)
    experiment = f"{pages(uri)}/#/experiments/{run.experiment_id}"
    if logged := found.tags.get(LOGGED_TAG):
        return f"{experiment}/models/{logged}/artifacts{OF_TRAINING}"
    inside = quote(f"{source.removeprefix(run.artifact_uri).strip('/')}/{FOLDER}/{HTML}")
    return f"{experiment}/runs/{run.run_id}/artifactPath/{inside}{OF_TRAINING}"


def _figure(interval: Interval) -> ScoreFigure:
    enough = interval.enough_groups
    low, high = (interval.low, interval.high) if enough else (None, None)
    return ScoreFigure(value=_number(interval.estimate), low=_number(low), high=_number(high))


def _number(value: float | None) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if value is None or value != value else float(value)


def _installed(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
