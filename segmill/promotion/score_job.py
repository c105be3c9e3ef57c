"""The job of scoring a registered version on a packed split. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.promotion.keys import TrustedKeys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Ask a version of the registered model about every image of a packed split.

    Args:
        uri: of MLflow.
        trusted: whose signatures of versions are believed.
        predictions_path: where each image's ids_HW uint8 are kept, as an npz file with the image's index as the key;
            None keeps none.
    """

    uri: str
    model_name: str
    version: str
    trusted: TrustedKeys
    packed_dir: Path
    split: str = "test"
    predictions_path: Path | None = None


def score_on_ray(job: ScoreJob) -> NDArray[np.int64]:
    """Be what Ray runs."""
    from segmill.promotion.registered import score_registered

    return score_registered(job)
