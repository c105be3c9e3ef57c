"""The stores of a stack without Ray and Prefect: who may read what; a backup, restored into another stack."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from deploy.stack import servers
from deploy.stack.__main__ import STOP
from deploy.stack.backup import backup, restore_stores
from deploy.stack.place import Place
from deploy.stack.processes import marked, start, stop, stop_rest, wait_ready
from deploy.stack.rights import grant_buckets, grant_databases, grant_mlflow
from segmill.errors import InputError

pytestmark = pytest.mark.long


@contextmanager
def stores(folder: Path) -> Iterator[Place]:
    """Start PostgreSQL, the S3 API and MLflow's server, as `up` does."""
    place = Place.create(folder)
    try:
        postgres, s3 = servers.postgres(place), servers.s3(place)
        start(place, postgres)
        start(place, s3)
        wait_ready(place, postgres, s3)
        grant_databases(place)
        grant_buckets(place)
        start_mlflow(place)
        yield place
    finally:
        killed = stop(place, STOP)
        stop_rest(place)
        assert marked(place) == set()
        place.remove()
    assert killed == []


def start_mlflow(place: Place) -> None:
    server = servers.mlflow(place)
    start(place, server)
    wait_ready(place, server)
    grant_mlflow(place)
    grant_mlflow(place)  # a second `up` does it again


def use(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in servers.pipeline_environment(place).items():
        monkeypatch.setenv(name, value)


def ledger(place: Place, database: str = "ledger") -> psycopg.Connection[tuple[int]]:
    url = servers.database_url(place, "ledger", "postgresql").replace("/ledger", f"/{database}")
    return psycopg.connect(url, passfile=str(place.secret_file("pipeline.pgpass")))


def test_a_backup_has_all_and_another_stack_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "curve.csv").write_text("epoch,loss")
    with ExitStack() as both:
        first = both.enter_context(stores(tmp_path / "first"))
        use(first, monkeypatch)
        client = MlflowClient()
        run_id = client.create_run(client.create_experiment("segmill-street")).info.run_id
        client.log_artifact(run_id, str(tmp_path / "curve.csv"))
        with ledger(first) as connection:
            connection.execute("CREATE TABLE rows AS SELECT 7 AS number")
        storage = boto3.session.Session().client("s3", endpoint_url=servers.urls(first)["s3"])
        storage.put_object(Bucket=servers.DATA_BUCKET, Key="files/md5/ab/cd", Body=b"bytes")
        (first.folder / "git" / "segmill.git").mkdir()
        (first.folder / "git" / "segmill.git" / "HEAD").write_text("ref: refs/heads/main")

        with pytest.raises(ClientError, match="AccessDenied"):
            storage.list_objects_v2(Bucket=servers.MODEL_BUCKET)
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            ledger(first, "mlflow")

        assert backup(first, tmp_path / "backup") > 1000
        with pytest.raises(InputError, match="is there already; name a new folder"):
            backup(first, tmp_path / "backup")

        second = both.enter_context(stores(tmp_path / "second"))
        stop(second, {"mlflow": signal.SIGTERM})
        restore_stores(second, tmp_path / "backup")
        start_mlflow(second)
        use(second, monkeypatch)
        client = MlflowClient()
        assert Path(client.download_artifacts(run_id, "curve.csv")).read_text() == "epoch,loss"
        client.set_tag(run_id, "noted", "after")  # the pipeline still manages what it made
        with ledger(second) as connection:
            assert connection.execute("SELECT number FROM rows").fetchone() == (7,)
        storage = boto3.session.Session().client("s3", endpoint_url=servers.urls(second)["s3"])
        assert storage.get_object(Bucket=servers.DATA_BUCKET, Key="files/md5/ab/cd")["Body"].read() == b"bytes"
        assert (second.folder / "git" / "segmill.git" / "HEAD").read_text() == "ref: refs/heads/main"
        with pytest.raises(InputError, match="holds objects; restore into a new stack"):
            restore_stores(second, tmp_path / "backup")
