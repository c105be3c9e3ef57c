"""A registry with one signed version, the champion, made once per module that asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from segmill import tracking
from segmill.promotion import registry
from segmill.promotion.keys import SigningKey, TrustedKeys, make_signing_key

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
    version = registry.register(uri, run_id, judging / "ensemble", NAME, key=key, tags={"data_version": "v1"})
    registry.set_alias(uri, NAME, registry.CHAMPION, version)
    files = tuple(path for path in (root / "mlartifacts").rglob("*") if path.is_file())
    return Registered(uri, run_id, version, root / "mlartifacts", files, key)
