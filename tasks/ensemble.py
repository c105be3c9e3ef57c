"""Stage ensemble: choose the members' weights on val and write the ensemble folder."""

from __future__ import annotations

from segmill.anomaly.policy import AnomalyPolicy
from segmill.cluster.resources import whole_node
from segmill.cluster.work import on_ray, wait
from segmill.ensembling.job import EnsembleJob, ensemble_on_ray
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace


def ensemble(workspace: Workspace, params: Params) -> None:
    """Write ``models/ensemble``: ensemble.json, member folders and, where groups calibrate it, the anomaly detector.

    Members not in params.yaml are left out.
    """
    promised = AnomalyPolicy(params.anomaly.rate, params.anomaly.abstain, params.anomaly.by or "")
    with replacing(workspace.ensemble) as draft:
        job = EnsembleJob(
            member_dirs={name: workspace.member(name) for name in params.members},
            packed_dir=workspace.packed,
            out_dir=draft,
            tta_hflip=params.ensemble.tta_hflip,
            anomaly=promised if params.split.calibration else None,
        )
        wait(on_ray(ensemble_on_ray, job, whole_node()))
