"""MLflow's own webhooks are sent beside segmill's when the registry moves an alias at a real tracking server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from postings import endpoint
from shared_servers import serving

from segmill.promotion.registry import CHAMPION, set_alias


@pytest.mark.slow
@pytest.mark.long
def test_mlflows_webhook_hears_of_an_alias_that_segmill_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")  # this test's endpoint is on loopback
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    options = ("--host", "127.0.0.1", "--workers", "1", "--backend-store-uri", database, "--port")
    with endpoint() as there, serving("mlflow", "server", *options) as uri:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.create_webhook("segmill", there.url, events=["model_version_alias.created"], secret="secret")
        client.create_registered_model("segmill-street")
        version = client.create_model_version("segmill-street", source="s3://bucket/model").version
        set_alias(uri, "segmill-street", CHAMPION, version)
        until = time.monotonic() + 20
        while not there.postings and time.monotonic() < until:
            time.sleep(0.1)
        (posting,) = there.postings
    sent = json.loads(posting.body)
    assert (sent["entity"], sent["action"]) == ("model_version_alias", "created")
    assert sent["data"] == {"name": "segmill-street", "alias": "champion", "version": str(version)}
    assert posting.headers["x-mlflow-signature"].startswith("v1,")
