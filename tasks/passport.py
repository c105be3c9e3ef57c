"""Step passport: freeze a version's report with all that it was made from, signed, in the registry. Idempotent."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segmill import tracking
from segmill.cluster.resources import whole_node
from segmill.cluster.work import on_ray, wait
from segmill.files import replacing
from segmill.params import Params
from segmill.promotion import passport, registry
from segmill.promotion.keys import signing_key
from segmill.workspace import Workspace
from tasks.inputs import all_settings, read_code
from tasks.report import RunEnd
from tasks.version import packed_version


@dataclass(frozen=True)
class Issued:
    """A passport that is in the registry: its content and the sha256 of its JSON."""

    passport: passport.Passport
    sha256: str


def issue_passport(workspace: Workspace, params: Params, run: tracking.Run, end: RunEnd) -> Issued:
    """Write the passport of the version that a run registered, sign it and put it into the registry.

    The page of the run must be written: it is the passport's other half, and is at its place again when the passport is
    stored, so that a run which dies in between is not taken for a complete one. A version that is judged again gets
    another passport, which names the row of the later verdict.

    Raises:
        InputError: there is no signing key.
        InfrastructureError: MLflow or the ledger does not answer.
    """
    with replacing(workspace.page) as page:
        shutil.copyfile(workspace.page, page)
        workspace.page.unlink()
        return _issued(workspace, params, run, end, page)


def _issued(workspace: Workspace, params: Params, run: tracking.Run, end: RunEnd, page: Path) -> Issued:
    key = signing_key()
    device = on_ray(passport.look_around, registry.REQUIREMENTS, whole_node())
    model, version = end.registered.model, end.registered.version
    known = registry.read_version(run.uri, model, version)
    figures = _figures(workspace)
    weights = passport.read_origins(workspace.ensemble, list(figures.members))
    made = passport.Passport(
        model=model,
        version=version,
        issued=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run.id,
        registered_by=known.run_id,
        manifest_sha256=passport.manifest_of(known.tags),
        ensemble_sha256=known.tags[registry.DIGEST_TAG],
        report_sha256=hashlib.sha256(page.read_bytes()).hexdigest(),
        data=passport.read_data(
            workspace.manifest,
            version=packed_version(workspace, params),
            split=params.split.model_dump(mode="json"),
            accept=params.data.accept,
        ),
        recipe=_recipe(workspace, params, end.registered.git_commit),
        weights=weights,
        warm_started_from=passport.champions_begun_with(weights),
        figures=figures,
        detection=json.loads(workspace.metrics.read_text()).get("anomaly"),
        verdict=passport.RecordedVerdict(
            decision=end.judged.decision,
            reasons=end.judged.reasons,
            facts=end.judged.facts,
            compared_with=end.judged.rival,
            policy=policy_of(params),
            ledger=passport.VerdictRow(number=end.judged.row, hash=end.judged.row_hash),
        ),
        environment=wait(device),
    )
    with tempfile.TemporaryDirectory(prefix="segmill-passport-") as name:
        folder = Path(name)
        passport.issue(made, page, key, folder)
        passport.store(run.uri, folder, model=model, version=version)
        return Issued(made, hashlib.sha256((folder / passport.JSON).read_bytes()).hexdigest())


def policy_of(params: Params) -> dict[str, Any]:
    """Return the settings of ``promotion`` without the ledger's address, which may hold a password."""
    return params.promotion.model_dump(mode="json", exclude={"ledger_url"})


def _recipe(workspace: Workspace, params: Params, git_commit: str) -> passport.Recipe:
    settings = all_settings(params)
    texts = {stage: read_code(workspace, stage) for stage in settings}
    return passport.Recipe(settings=settings, **passport.code_hashes(texts), git_commit=git_commit)


def _figures(workspace: Workspace) -> passport.Figures:
    """Return what ``evaluate`` counted, as scores with intervals."""
    from segmill.data.packing.packed import read_pack
    from segmill.evaluation.scoring import read_counts

    return passport.figures(read_counts(workspace.reports / "counts.npz"), read_pack(workspace.packed).class_names)
