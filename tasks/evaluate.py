"""Stage evaluate: score every member and the ensemble on test, once, and write the report."""

from __future__ import annotations

from segmill.cluster.resources import whole_node
from segmill.cluster.work import on_ray, wait
from segmill.evaluation.job import EvaluateJob
from segmill.evaluation.shell import evaluate_on_ray
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace


def evaluate(workspace: Workspace, params: Params) -> None:
    """Write ``reports``: metrics.json, counts.npz, figures and index.html."""
    with replacing(workspace.reports) as draft:
        job = EvaluateJob(
            ensemble_dir=workspace.ensemble,
            packed_dir=workspace.packed,
            augmented_dir=workspace.augmented,
            out_dir=draft,
            overlays=params.evaluate.overlays,
            progress_path=workspace.count("evaluate"),
        )
        wait(on_ray(evaluate_on_ray, job, whole_node()))
