"""A registry with one signed version, the champion, made once per module that asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from segmill import tracking
from segmill.data.packing.packed import PackedSplit
from segmill.ensembling.predict import Ensemble, read_ensemble
from segmill.promotion import registry
from segmill.promotion.keys import SigningKey, TrustedKeys, make_signing_key
from segmill.promotion.signing import ensemble_digest

NAME = "segmill-street"


@dataclass(frozen=True)
class Registered:
    uri: str
    run_id: str
    version: str
    artifacts: Path
    files: tuple[Path, ...]  # of the artifacts, before anybody loads them
    key: SigningKey

    @property
    def trusted(self) -> TrustedKeys:
        return TrustedKeys((self.key.public,), "trusted_keys")

    @property
    def folder(self) -> Path:
        """Where the version's files are stored."""
        return next(path for path in self.files if path.name == "MLmodel").parent


@pytest.fixture(scope="module")
def registered(judging: Path, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    root, key = tmp_path_factory.mktemp("registry"), make_signing_key()
    uri = f"sqlite:///{root}/mlflow.db"
    run_id = tracking.start_run(uri, "street", "retrain", artifacts=str(root / "mlartifacts"))
    test, ensemble = PackedSplit(judging / "packed" / "test"), Ensemble.load(judging / "ensemble")
    golden = [(test.image(index), ensemble.predict(test.image(index)[None])[0]) for index in (0, 1)]
    version = registry.register(
        uri, run_id, judging / "ensemble", NAME, key=key, tags={"data_version": "v1"}, golden=golden
    )
    registry.set_alias(uri, NAME, registry.CHAMPION, version)
    files = tuple(path for path in (root / "mlartifacts").rglob("*") if path.is_file())
    return Registered(uri, run_id, version, root / "mlartifacts", files, key)


def register_unsigned(uri: str, run_id: str, ensemble: Path, model: str, scratch: Path) -> str:
    """Register an ensemble as a segmill did that signed nothing; return the version."""
    registry.save_model(scratch / "old", ensemble)
    with tracking.reaching(uri) as client:
        client.create_registered_model(model)
        client.log_artifacts(run_id, str(scratch / "old"), "old")
        source = f"{client.get_run(run_id).info.artifact_uri}/old"
        classes = [entry["name"] for entry in read_ensemble(ensemble)["classes"]]
        tags = {registry.DIGEST_TAG: ensemble_digest(ensemble), registry.CLASSES_TAG: json.dumps(classes)}
        return str(client.create_model_version(model, source, run_id, tags=tags).version)
