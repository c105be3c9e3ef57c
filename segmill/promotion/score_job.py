"""The job of scoring a registered version on a packed split. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segmill.promotion.keys import TrustedKeys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Ask a version of the registered model about the images of packed splits, in one process that loads it once.

    Args:
        uri: of MLflow.
        splits: train, val or test; the other arguments are about each of them.
        trusted: whose signatures of versions are believed.
        sealed: groups whose predictions are never written, whatever ``part`` is.
        part: which images are scored: all, the open ones (of groups that are not sealed) or the sealed ones.
        groups: where any are named, only images of these are scored.
        images: per split, which of those images this process scores, by number; none given is all.
        former_classes: what became of classes of earlier versions, as dataset.yaml has it.
        predictions_path: where the ids_HW uint8 of each open image are kept, as an npz file; the key is the image's
            index among the open ones, in the split's order. None keeps none; of the first split alone.
    """

    uri: str
    model_name: str
    version: str
    trusted: TrustedKeys
    packed_dir: Path
    splits: tuple[str, ...] = ("test",)
    sealed: tuple[str, ...] = ()
    part: Literal["all", "open", "sealed"] = "all"
    groups: tuple[str, ...] = ()
    images: tuple[range, ...] = ()
    former_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    predictions_path: Path | None = None


def score_on_ray(job: ScoreJob) -> list[NDArray[np.int64]]:
    """Be what Ray runs."""
    from segmill.promotion.registered import score_registered

    return score_registered(job)
