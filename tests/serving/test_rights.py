"""The roles of docs/security.md in a real PostgreSQL, its policy at an S3 API: each does its work and nothing else."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from ledgers import ANNA, MODEL, ledger_at, record, trusting
from moto.server import ThreadedMotoServer
from postings import SECRET, endpoint
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from segmill.errors import InputError
from segmill.notify_params import EVENTS
from segmill.promotion.delivery import deliver
from segmill.promotion.lease import leased
from segmill.promotion.ledger import Ledger, open_ledger
from segmill.promotion.outbox import add, add_drift, add_not_served
from segmill.promotion.webhooks import webhook
from segmill.serving.audit import AuditLog, AuditRow, audit_log
from segmill.serving.head import read_head
from segmill.serving.keys import ApiKeys, Scope
from segmill.serving.tables import make_service_tables

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ROLES = ("service", "keys", "pipeline", "reader")


def with_notices(url: str) -> Ledger:
    return open_ledger(url, trusted=trusting(ANNA), key=ANNA, in_transaction=add)


@pytest.fixture(scope="module")
def as_role(server: str) -> Iterator[Callable[[str], str]]:
    """A database with the tables of an owner and the page's roles; the address of one, or of the owner, by its name."""
    name = f"rights_{uuid.uuid4().hex}"
    url = make_url(server).set(database=name)

    def address(role: str) -> str:
        return (url if role == "owner" else url.set(username=f"segmill_{role}")).render_as_string(hide_password=False)

    administrator = create_engine(server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    owner = address("owner")
    record(with_notices(owner), "promote", "1", decision="PASS")
    with leased(owner, MODEL, "the first run"):
        pass
    make_service_tables(owner)
    ApiKeys(owner).create("first", {Scope.SEGMENT}, None)
    (statements,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    engine = create_engine(owner)
    with engine.begin() as connection:
        connection.exec_driver_sql(statements)
    engine.dispose()
    yield address
    with administrator.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        for role in ROLES:
            connection.execute(text(f"DROP ROLE segmill_{role}"))
    administrator.dispose()


def denied(url: str, *statements: str) -> None:
    engine = create_engine(url)
    for statement in statements:
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()


def test_the_service_reads_who_serves_and_the_keys_and_adds_to_the_audit_log(
    as_role: Callable[[str], str],
) -> None:
    url = as_role("service")
    assert read_head(ledger_at(url), MODEL).version is not None
    assert next(key.name for key in ApiKeys(url).all()) == "first"
    row = AuditRow(
        request="of the service", key="0a1b", route="/v1/segment", version="1", status=200, images=1, bytes_in=1,
        bytes_out=1, milliseconds=1,
    )  # fmt: skip
    with audit_log(url) as log:
        log.add(row)
    assert log.lost == 0
    add_drift(url, model=MODEL, version="1", since="2026-11-30T04:00:00+00:00", images=9, evidence=21.0)
    add_not_served(url, model=MODEL, number=2, version="2", champion="1", why="it was changed")
    assert AuditLog(as_role("reader")).last(1)[0]["request"] == "of the service"
    denied(
        url, "SELECT * FROM api_audit", "UPDATE api_audit SET status = 200", "DELETE FROM api_audit",
        "TRUNCATE api_audit", "DROP TABLE api_audit", "DROP TRIGGER api_audit_rows ON api_audit",
        "ALTER TABLE api_audit DISABLE TRIGGER ALL", "UPDATE api_keys SET revoked_s = 0", "DELETE FROM ledger_rows",
        "SELECT * FROM notices", "UPDATE notices SET kind = 'promoted'", "DELETE FROM notices",
        "SELECT * FROM ledger_leases", "CREATE TABLE mine (id int)",
    )  # fmt: skip
    with pytest.raises(InputError, match="permission denied"):
        ApiKeys(url).create("mine", {Scope.ADMIN}, None)
    with pytest.raises(InputError, match="permission denied"):
        record(ledger_at(url), "promote", "2", decision="PASS")


def test_who_makes_keys_can_make_rotate_and_revoke_them_and_not_rewrite_one(as_role: Callable[[str], str]) -> None:
    keys = ApiKeys(as_role("keys"))
    make_service_tables(as_role("keys"))  # as `segmill keys create` does; they are there
    key, _ = keys.create("camera-7", {Scope.SEGMENT}, None)
    made, _ = keys.rotate(key.id, timedelta(hours=1))
    assert keys.revoke(made.id).state() == "revoked"
    denied(
        as_role("keys"), "DELETE FROM api_keys", "UPDATE api_keys SET hash = ''",
        "UPDATE api_keys SET scopes = 'admin'",
        "SELECT * FROM api_audit", "SELECT * FROM ledger_rows",
    )  # fmt: skip


def test_the_pipeline_adds_rows_and_can_not_rewrite_one(
    as_role: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = as_role("pipeline")
    ledger = with_notices(url)
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with endpoint() as there:
        target = webhook(there.url, "HOOK_SECRET", frozenset(EVENTS))
        deliver(url, [target])
        with leased(url, MODEL, "a night"):
            row = record(ledger, "promote", "2", decision="PASS")
        move = ledger.begin_move(MODEL, "2")
        ledger.mirrored(MODEL, row.number, [move])
        assert deliver(url, [target]).sent == 1
    assert ledger.verify(MODEL) == []
    denied(
        url, "UPDATE ledger_rows SET payload = ''", "DELETE FROM ledger_rows", "SELECT * FROM api_keys",
        "SELECT * FROM api_audit", "INSERT INTO api_keys SELECT", "DROP TABLE ledger_rows",
    )  # fmt: skip


def test_a_reader_reads_and_changes_nothing(as_role: Callable[[str], str]) -> None:
    url = as_role("reader")
    assert ledger_at(url).rows(MODEL)
    denied(
        url, "SELECT hash FROM api_keys", "DELETE FROM api_audit", "UPDATE ledger_models SET head = 0",
        "INSERT INTO notices SELECT", "DELETE FROM ledger_rows",
    )  # fmt: skip


def test_the_services_key_of_the_bucket_reads_and_writes_nothing() -> None:
    (policy,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        made = {"endpoint_url": address, "region_name": "us-east-1"}
        setup = {"aws_access_key_id": "setup", "aws_secret_access_key": "setup", **made}
        storage, users = boto3.client("s3", **setup), boto3.client("iam", **setup)
        for bucket in ("segmill-models", "segmill-data"):
            storage.create_bucket(Bucket=bucket)
            storage.put_object(Bucket=bucket, Key="model", Body=b"weights")
        users.create_user(UserName="service")
        users.put_user_policy(UserName="service", PolicyName="models", PolicyDocument=policy)
        key = users.create_access_key(UserName="service")["AccessKey"]
        httpx.post(f"{address}/moto-api/reset-auth", content=b"0", headers={"content-type": "text/plain"})
        service = boto3.client(
            "s3", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"], **made
        )
        assert service.get_object(Bucket="segmill-models", Key="model")["Body"].read() == b"weights"
        assert [one["Key"] for one in service.list_objects_v2(Bucket="segmill-models")["Contents"]] == ["model"]
        for ask in (
            lambda: service.put_object(Bucket="segmill-models", Key="model", Body=b"others"),
            lambda: service.delete_object(Bucket="segmill-models", Key="model"),
            lambda: service.get_object(Bucket="segmill-data", Key="model"),
            lambda: service.list_objects_v2(Bucket="segmill-data"),
            lambda: service.list_buckets(),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                ask()
    finally:
        server.stop()
