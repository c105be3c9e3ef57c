"""What git, MLflow and the ledger say of a run before any file is fetched: whether it would come to something new."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from segmill import tracking
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.judging import gate_settings
from tasks.promote import Judged, earlier_judgement, opened_ledger
from tasks.stage import recorded_stages, same_as_recorded


@dataclass(frozen=True)
class KnownVerdict:
    """The version that a run would come to, and the verdict on it; ``run_id``: of the MLflow run that recorded it."""

    model: str
    version: str
    run_id: str
    judged: Judged


def known_verdict(workspace: Workspace, params: Params, uri: str) -> KnownVerdict | None:
    """Return what a run would come to, where dvc.lock records all of it and a finished run judged that.

    None where code, settings, data or the gate's settings differ, where another champion serves since, or where only
    files could say. Raises InfrastructureError where MLflow or the ledger does not answer.
    """
    if not same_as_recorded(workspace, params):
        return None
    digest = hashlib.sha256(recorded_stages(workspace)).hexdigest()
    for run_id, tags in tracking.finished_runs(uri, "dvc_lock_sha256", digest):
        if "model" in tags and "version" in tags:
            rows = opened_ledger(workspace, params).rows(tags["model"])
            judged = earlier_judgement(rows, tags["version"], gate_settings(params)) if rows else None
            return KnownVerdict(tags["model"], tags["version"], run_id, judged) if judged else None
    return None
