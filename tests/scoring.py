"""A workspace with a signed version of a real, untrained ensemble, and a folder of images to score."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from judging import judging
from PIL import Image

from flows.environment import tracking_uri
from segmill import tracking
from segmill.data.packing.packed import PackedSplit
from segmill.ensembling.predict import Ensemble
from segmill.params import read_params
from segmill.promotion import registry
from segmill.promotion.keys import TrustedKeys, make_signing_key, trusted_keys
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.promotion.versions import check_signed
from segmill.serving.batch.output import BatchNote
from segmill.workspace import Workspace
from tasks.register import model_name

__all__ = ["judging"]


@dataclass(frozen=True)
class ScoringSite:
    """A workspace whose champion is version 1."""

    workspace: Workspace
    uri: str
    model: str
    ensemble: Ensemble

    @property
    def trusted(self) -> TrustedKeys:
        return trusted_keys(self.workspace.root)

    def note(self, version: str = "1", source: str = "/images") -> BatchNote:
        sha256 = check_signed(self.uri, self.model, version, self.trusted)
        return BatchNote(
            source=source, asked=version, model=self.model, version=version, manifest_sha256=sha256, finished=False
        )

    def expected(self, image: Path) -> np.ndarray:
        """Return what the ensemble predicts of an image: class ids."""
        pixels_HWC = np.asarray(Image.open(image).convert("RGB"))
        return np.asarray(self.ensemble.predict(pixels_HWC[None])[0])


@pytest.fixture(scope="package")
def scoring(_street_workspace: Workspace, judging: Path, tmp_path_factory: pytest.TempPathFactory) -> ScoringSite:
    root = tmp_path_factory.mktemp("scoring") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    params = read_params(workspace.params)
    set_up(root)
    uri, name = tracking_uri(workspace, params), model_name(workspace, params)
    run_id = tracking.start_run(uri, name, "retrain", artifacts=(root / "mlartifacts").as_uri())
    image_HWC = PackedSplit(judging / "packed" / "test").image(0)
    ensemble = Ensemble.load(judging / "ensemble")
    ids_HW = ensemble.predict(image_HWC[None])[0]
    golden = [(image_HWC, ids_HW)]
    registry.register(uri, run_id, judging / "ensemble", name, key=make_signing_key(), golden=golden)
    book = workspace_ledger(root)
    book.append(book.begin(name), Entry(action="promote", version="1", decision="PASS"))
    return ScoringSite(workspace, uri, name, ensemble)


@pytest.fixture(scope="package")
def second(scoring: ScoringSite, judging: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Register a second version, of the same weights, and return its number; it is not the champion."""
    folder = tmp_path_factory.mktemp("second") / "ensemble"
    shutil.copytree(judging / "ensemble", folder)
    (folder / "note.txt").write_text("another digest")
    run_id = registry.run_of(scoring.uri, scoring.model, "1")
    return registry.register(scoring.uri, run_id, folder, scoring.model, key=make_signing_key())


@pytest.fixture
def images(street: Path, tmp_path: Path) -> Path:
    """A folder of 12 images in two folders."""
    folder = tmp_path / "images"
    for number, path in enumerate(sorted((street / "images").rglob("*.png"))[:12]):
        place = folder / ("day" if number % 2 else "night") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return folder
