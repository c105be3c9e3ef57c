"""The job of building the ensemble from trained members. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmill.anomaly.policy import AnomalyPolicy


@dataclass(frozen=True, kw_only=True)
class EnsembleJob:
    """Choose how much each member's vote weighs, on val, and write the ensemble folder.

    Args:
        member_dirs: name to member folder, in the order the ensemble keeps.
        packed_dir: packed splits; val is read.
        out_dir: a temporary folder that the caller renames when everything is in it.
        tta_hflip: whether predictions are averaged with those of mirrored images; decides the weights too.
        anomaly: what the anomaly detector is to promise; None makes none.
    """

    member_dirs: Mapping[str, Path]
    packed_dir: Path
    out_dir: Path
    tta_hflip: bool
    anomaly: AnomalyPolicy | None = None


def ensemble_on_ray(job: EnsembleJob) -> dict[str, Any]:
    """Be what Ray runs."""
    from segmill.ensembling.select import build_ensemble

    return build_ensemble(job)
