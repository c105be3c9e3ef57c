"""The job of scoring a registered version on a packed split. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Ask a version of the registered model about every image of a packed split. ``uri``: of MLflow."""

    uri: str
    model_name: str
    version: str
    packed_dir: Path
    split: str = "test"


def score_on_ray(job: ScoreJob) -> NDArray[np.int64]:
    """Be what Ray runs."""
    from segmill.promotion.registered import score_registered

    return score_registered(job)
