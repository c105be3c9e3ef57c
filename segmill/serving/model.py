"""A registered version that answers: verified, loaded, and proven on its golden images before it does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.ensembling.predict import Ensemble, batches
from segmill.promotion.golden import prove, read_golden
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.signing import ENSEMBLE, read_manifest
from segmill.promotion.versions import fetch_verified
from segmill.reports.pictures import palette
from segmill.serving.answers import Classes, Segmented, Wanted
from segmill.serving_params import Engine

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """Which model answers.

    Attributes:
        name, version: in the registry.
        manifest_sha256: of the signed manifest of its files.
        classes: it tells apart.
        detector: which scores its anomaly detector goes by, what it promises and how many groups calibrate it; empty
            where it has none.
        usual_G: the anomaly score of an image of each calibration group.
        engines: what computes each member, by name: ``pytorch`` or ``openvino``.
    """

    name: str
    version: str
    manifest_sha256: str
    classes: Classes
    detector: dict[str, Any] = field(default_factory=dict)
    usual_G: tuple[float, ...] = ()
    engines: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "manifest_sha256": self.manifest_sha256,
            "classes": [
                {"id": number, "name": name, "color": "#{:02x}{:02x}{:02x}".format(*self.classes.colors_K3[number])}
                for number, name in enumerate(self.classes.names)
            ],
            "anomaly_detector": self.detector or None,
            "engines": self.engines,
        }


class ServedModel:
    """An ensemble in this process that answers. Made by ``load_version``."""

    def __init__(self, facts: ModelFacts, ensemble: Ensemble) -> None:
        self.facts = facts
        self._ensemble = ensemble

    def segment(self, images: Sequence[Pixels], wanted: Sequence[Wanted]) -> list[Segmented]:
        """Segment images HWC uint8, C = 3, of any sizes; images of one size that follow one another go together.

        ``wanted``: of each image.
        """
        found: list[Segmented] = []
        for image_BHWC in batches(images):
            asked = wanted[len(found) : len(found) + len(image_BHWC)]
            probs_BKHW, judged = self._ensemble.predict_judged(
                image_BHWC, values=[one.value for one in asked], maps=any(one.anomaly_map for one in asked)
            )
            for probs_KHW, anomaly, one in zip(probs_BKHW, judged, asked, strict=True):
                kept = probs_KHW.astype(np.float16) if one.probabilities else None
                confidence = float(probs_KHW.max(axis=0).mean())
                found.append(Segmented(probs_KHW.argmax(axis=0).astype(np.uint8), kept, confidence, anomaly))
        return found


def load_version(uri: str, model: str, version: str, trusted: TrustedKeys, *, engine: Engine = "auto") -> ServedModel:
    """Fetch a version, verify the copy, load it, and let it predict its golden images.

    Only its data come from the registry; the code that runs is this process's own. ``engine``: of ServingParams.

    Raises:
        SignatureError, InputError, InfrastructureError: as for ``versions.fetch_verified``.
        SegmillError: it does not load, or predicts other classes than when it was registered.
    """
    from segmill.serving.engine import accelerated  # imports torch, which doors and the keeper do without

    with tempfile.TemporaryDirectory(prefix="segmill-version-") as name:
        folder = fetch_verified(uri, model, version, trusted, to=Path(name))
        ensemble, golden = Ensemble.load(folder / ENSEMBLE), read_golden(folder)
        engines = dict.fromkeys(ensemble.members, "pytorch")
        if engine == "auto":
            ensemble, engines = accelerated(ensemble, [image_HWC for image_HWC, _ in golden])
        prove(golden, _ids(ensemble), model=model, version=version)
        manifest = read_manifest(folder, trusted, model=model)
    return ServedModel(_facts(ensemble, model, version, manifest.sha256, engines), ensemble)


def _ids(ensemble: Ensemble) -> Any:
    return lambda image_BHWC: ensemble.predict_probs(image_BHWC).argmax(axis=1).astype(np.uint8)


def _facts(ensemble: Ensemble, model: str, version: str, manifest_sha256: str, engines: dict[str, str]) -> ModelFacts:
    classes, detector = sorted(ensemble.facts["classes"], key=lambda entry: int(entry["id"])), ensemble.detector
    return ModelFacts(
        name=model,
        version=version,
        manifest_sha256=manifest_sha256,
        classes=Classes(
            tuple(entry["name"] for entry in classes), palette(entry["color"] for entry in classes),
            int(ensemble.facts["ignore_id"]),
        ),
        detector=detector.described() if detector else {},
        usual_G=tuple(detector.group_scores_G.tolist()) if detector else (),
        engines=engines,
    )  # fmt: skip
