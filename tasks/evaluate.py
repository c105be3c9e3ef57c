"""Stage evaluate: score every member and the ensemble on test, once, and write the report."""

from __future__ import annotations

from dataclasses import asdict

from segmill.cluster.resources import whole_node
from segmill.cluster.work import wait
from segmill.files import replacing
from segmill.params import Params
from segmill.training.distributed import launch
from segmill.workspace import Workspace


def evaluate(workspace: Workspace, params: Params) -> None:
    """Write ``reports``: metrics.json, counts.npz, figures and index.html."""
    with replacing(workspace.reports) as draft:
        wait(
            launch.on_ray(
                "segmill.evaluation.report:evaluate_and_report",
                workspace.ensemble,
                workspace.packed,
                workspace.augmented,
                draft,
                overlays=params.evaluate.overlays,
                **asdict(whole_node()),
            )
        )
