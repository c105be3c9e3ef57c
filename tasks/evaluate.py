"""Stage evaluate: score every member and the ensemble on test, once."""

from __future__ import annotations

import shutil

from segmill.cluster.work import wait
from segmill.evaluation.job import EvaluateJob
from segmill.evaluation.shell import start_evaluation
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace


def evaluate(workspace: Workspace, params: Params) -> None:
    """Write metrics.json, counts.npz and examples.npz into ``reports``, where the page of the last run may be too."""
    scored = workspace.scratch / "evaluation"
    with replacing(scored, durable=False) as draft:
        job = EvaluateJob(
            ensemble_dir=workspace.ensemble,
            packed_dir=workspace.packed,
            out_dir=draft,
            overlays=params.evaluate.overlays,
            sealed=params.split.sealed,
            progress_path=workspace.count("evaluate"),
        )
        wait(start_evaluation(job))
    for path in scored.iterdir():
        with replacing(workspace.reports / path.name) as draft:
            shutil.copyfile(path, draft)
    shutil.rmtree(scored)
