"""Collects what the gate judges by: both models' counts on the same images, kept for as long as both are the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError, SegmillError
from segmill.files import replacing
from segmill.promotion.score_job import ScoreJob
from segmill.promotion.score_parts import score_on_workers

Counts = NDArray[np.int64]
MOST_APART = 1e-4  # of the pixels: what another kind of device may round otherwise


@dataclass(frozen=True)
class Kept:
    """The folder of counts and predictions of versions that met in the gate. It may be deleted at any time."""

    folder: Path

    def counts(self, manifest_sha256: str, images: str) -> Path:
        """Where the counts of the version with this manifest on the images with this digest are kept."""
        return self.folder / f"{manifest_sha256[:16]}-{images[:16]}.npy"

    def predictions(self, manifest_sha256: str, images: str) -> Path:
        """Where its predictions are kept."""
        return self.folder / f"{manifest_sha256[:16]}-{images[:16]}.npz"

    def forget_others(self, manifests: Collection[str]) -> None:
        """Delete what is kept of versions with other manifests."""
        starts = tuple(one[:16] for one in manifests)
        for path in self.folder.glob("*"):
            if not path.name.startswith(starts):
                path.unlink(missing_ok=True)


def counts_of(
    versions: Mapping[str, str], job: ScoreJob, images: Sequence[str], kept: Kept | None, *, predictions: bool
) -> list[list[Counts]]:
    """Return per version the N x K x K counts of each of the job's splits; what is not kept runs side by side on Ray.

    Args:
        versions: version -> sha256 of its manifest; no two are asked in the same process.
        job: of any version.
        images: per split a digest of its images and masks, so that a changed split is predicted anew.
        kept: None keeps nothing.
        predictions: whether predictions on the first split are kept too.

    Raises errors as ``registered.score_registered``.
    """
    asked = dict(zip(job.splits, images, strict=True))
    found: dict[str, dict[str, Counts]] = {version: {} for version in versions}
    lacking: list[ScoreJob] = []
    for version, manifest in versions.items():
        place = kept.predictions(manifest, images[0]) if kept and predictions else None
        for split, digest in asked.items():
            path = kept.counts(manifest, digest) if kept else None
            if path and path.is_file() and (place is None or split != job.splits[0] or place.is_file()):
                found[version][split] = np.load(path, allow_pickle=False)
        if missing := tuple(split for split in asked if split not in found[version]):
            place = place if missing[0] == job.splits[0] else None
            lacking.append(replace(job, version=version, splits=missing, predictions_path=place))
    for own, counts in zip(lacking, score_on_workers(lacking), strict=True):
        found[own.version] |= dict(zip(own.splits, counts, strict=True))
        for split in own.splits:
            if kept is None:
                continue
            path = kept.counts(versions[own.version], asked[split])
            with replacing(path, durable=False) as draft, draft.open("wb") as file:
                np.save(file, found[own.version][split])
    return [[found[version][split] for split in asked] for version in versions]


def refuse_another_model(registered_NKK: Counts, evaluated_NKK: Counts, version: str) -> dict[str, Any]:
    """Hold the registered version's counts against those that ``evaluate`` measured of the ensemble before.

    Returns the share of pixels that are apart; 0 on the same kind of device.

    Raises:
        InputError: the images are not the same ones.
        SegmillError: more than one pixel in 10,000 is apart: what was registered is not what was evaluated.
    """
    if registered_NKK.shape != evaluated_NKK.shape:
        raise InputError(
            f"version {version} was scored on {len(registered_NKK)} images and evaluate measured {len(evaluated_NKK)}",
            "run `segmill retrain` again",
        )
    # A pixel that is predicted otherwise leaves one cell of the table and enters another.
    apart = float(np.abs(registered_NKK - evaluated_NKK).sum()) / 2 / max(1, int(evaluated_NKK.sum()))
    if apart > MOST_APART:
        raise SegmillError(
            f"version {version} does not predict what evaluate measured: {apart:.4%} of the test pixels differ "
            f"(at most {MOST_APART:.2%} may, by rounding on another device), so it is not judged; run `segmill "
            "doctor`, then `segmill retrain`"
        )
    return {"pixels_apart": apart}
