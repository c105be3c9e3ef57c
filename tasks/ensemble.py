"""Stage ensemble: choose how much each member's vote weighs, on val, and lay the ensemble folder down."""

from __future__ import annotations

from dataclasses import asdict

from segmill.cluster.resources import whole_node
from segmill.cluster.work import wait
from segmill.files import replacing
from segmill.params import Params
from segmill.training.distributed import launch
from segmill.workspace import Workspace


def ensemble(workspace: Workspace, params: Params) -> None:
    """Write ``models/ensemble``: ensemble.json and the member folders. Members not in params.yaml are left out."""
    members = {name: workspace.member(name) for name in params.members}
    with replacing(workspace.ensemble) as draft:
        wait(
            launch.on_ray(
                "segmill.ensembling.select:build_ensemble",
                members,
                workspace.packed,
                draft,
                tta_hflip=params.ensemble.tta_hflip,
                **asdict(whole_node()),
            )
        )
