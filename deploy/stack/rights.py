"""Who may do what on a stack: databases, buckets and users, each with the least rights that its work takes."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import boto3
from psycopg import Connection, sql
from sqlalchemy import make_url

from deploy.stack.place import Place
from deploy.stack.servers import (
    DATA_BUCKET,
    DATABASES,
    LOOPBACK,
    MODEL_BUCKET,
    REGION,
    SERVICE,
    ask,
    database_url,
    superuser,
    urls,
)
from segmill.serving.tables import make_service_tables

READ = ["s3:GetObject", "s3:GetObjectVersion"]
WRITE = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
LIST = ["s3:ListBucket", "s3:GetBucketLocation"]
DELETE_SEVERAL = ["s3:DeleteObject"]  # of the bucket: moto asks for it there where one request deletes several objects
# Which buckets a user of the S3 API may read and write: MLflow's server, who trains, who backs up.
BUCKETS = {"mlflow": [MODEL_BUCKET], "pipeline": [DATA_BUCKET], "backup": [DATA_BUCKET, MODEL_BUCKET]}
# What the service may in the ledger's database.
SERVICE_MAY = (
    "SELECT ON ledger_meta, ledger_rows, ledger_models, ledger_moves, api_keys",
    "INSERT ON api_audit",
    "USAGE ON SEQUENCE api_audit_number_seq",
    "SELECT, INSERT, UPDATE, DELETE ON served_windows, notices, notice_targets, notice_deliveries",
)


def grant_databases(place: Place) -> None:
    """Make each database and the role that owns it, and the service's role, where they are not there.

    Nobody else may connect.

    PostgreSQL gets the hash of a password (SCRAM), so that no log can show one.
    """
    with superuser(place) as connection:
        roles = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        databases = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for role in dict.fromkeys([*DATABASES.values(), SERVICE]):
            password = place.secret(f"postgres-{role}")
            place.keep(f"{role}.pgpass", f"{LOOPBACK}:{place.ports['postgres']}:*:{role}:{password}\n")
            if role not in roles:
                kept = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
                statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(statement.format(sql.Identifier(role), sql.Literal(kept)))
        for database in DATABASES:
            if database not in databases:
                make_database(connection, database)
            connection.execute(_nobody_else(database))


def grant_service(place: Place) -> None:
    """Make the service's tables, as their owner, and let the service use what it takes of the ledger's database."""
    owner = make_url(database_url(place, "ledger", "postgresql+psycopg"))
    make_service_tables(
        owner.set(password=place.secret(f"postgres-{owner.username}")).render_as_string(hide_password=False)
    )
    with superuser(place, "ledger") as connection:
        connection.execute(f"GRANT CONNECT ON DATABASE ledger TO {SERVICE}")
        for rights in SERVICE_MAY:
            connection.execute(f"GRANT {rights} TO {SERVICE}")


def make_database(connection: Connection[Any], database: str) -> None:
    """Make an empty database, in which only its owner may work."""
    name, owner = sql.Identifier(database), sql.Identifier(DATABASES[database])
    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))
    connection.execute(_nobody_else(database))


def _nobody_else(database: str) -> sql.Composed:
    return sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))


def grant_buckets(place: Place) -> None:
    """Make the buckets, and the users with a key each; from then on the API refuses everyone else."""
    made = dict(aws_access_key_id="setup", aws_secret_access_key="setup", endpoint_url=urls(place)["s3"])
    storage, users = (boto3.client(service, region_name=REGION, **made) for service in ("s3", "iam"))
    for bucket in (DATA_BUCKET, MODEL_BUCKET):
        storage.create_bucket(Bucket=bucket)
    keys = {}
    for user, buckets in BUCKETS.items():
        users.create_user(UserName=user)
        users.put_user_policy(UserName=user, PolicyName="buckets", PolicyDocument=json.dumps(_policy(buckets)))
        keys[user] = users.create_access_key(UserName=user)["AccessKey"]
    ask(f"{urls(place)['s3']}/moto-api/reset-auth", b"0", kind="text/plain")
    for user, key in keys.items():
        secret = f"aws_access_key_id = {key['AccessKeyId']}\naws_secret_access_key = {key['SecretAccessKey']}\n"
        place.keep(f"{user}.aws", f"[default]\n{secret}")


def buckets_granted(place: Place) -> bool:
    """Tell whether ``grant_buckets`` came to its end on this stack."""
    return all(place.secret_file(f"{user}.aws").exists() for user in BUCKETS)


def grant_mlflow(place: Place) -> None:
    """Make MLflow's users, who are no admins: `pipeline` manages the experiments and models that it made itself, `ray`,
    with which Ray's nodes fetch the versions that they judge, reads, and so does `service`."""
    admin = f"admin:{place.secret('mlflow-admin')}"
    for name in ("pipeline", "ray", "service"):
        user = json.dumps({"username": name, "password": place.secret(f"mlflow-{name}")}).encode()
        try:
            ask(f"{urls(place)['mlflow']}/api/2.0/mlflow/users/create", user, user=admin)
        except urllib.error.HTTPError as error:
            if b"RESOURCE_ALREADY_EXISTS" not in error.read():
                raise


def _policy(buckets: list[str]) -> dict[str, Any]:
    each = [f"arn:aws:s3:::{bucket}" for bucket in buckets]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": LIST + DELETE_SEVERAL, "Resource": each},
            {"Effect": "Allow", "Action": READ + WRITE, "Resource": [f"{one}/*" for one in each]},
        ],
    }
