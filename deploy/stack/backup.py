"""Backup and restore of what lasts: the git remote, the databases, the buckets, the key that signs versions."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
from psycopg import sql

from deploy.stack.place import Place
from deploy.stack.processes import program_on_path, surroundings
from deploy.stack.rights import make_database
from deploy.stack.servers import DATA_BUCKET, DATABASES, MODEL_BUCKET, REGION, database_url, superuser, urls
from segmill.errors import InputError
from segmill.files import replacing

MANIFEST = "backup.json"
# MLflow's users are in a database that is restored, so that their passwords must be those of before.
SECRETS = ("mlflow-admin", "mlflow-pipeline", "mlflow-ray", "mlflow-service")
# The ledger names versions of MLflow: it is dumped before, so that no row of it names one that the dump lacks.
DUMPED = ("ledger", "mlflow", "mlflow_users", "prefect")
BUCKETS = (DATA_BUCKET, MODEL_BUCKET)


def backup(place: Place, folder: Path) -> int:
    """Write a backup of a stack that is up, and may be at work, into a new folder; return its bytes.

    What names bytes comes first, then the bytes: git and the databases, then the buckets. Bytes are written before they
    are named, so that a night in its middle leaves nothing that names absent ones; only `segmill gc` must not run.
    The folder appears when it is complete. It holds passwords and the signing key: keep it as secret as the stack.

    Raises:
        InputError: the folder is there, or a program of PostgreSQL's refused.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already", "name a new folder")
    with replacing(folder) as draft:
        draft.mkdir()
        shutil.copytree(place.folder / "git", draft / "git")
        if (keys := _keys(place)).exists():
            shutil.copytree(keys, draft / "config")
        (draft / "secrets").mkdir()
        for name in SECRETS:
            (draft / "secrets" / name).write_text(place.secret(name))
        for database in DUMPED:
            file = str(draft / f"{database}.dump")
            _postgres(place, database, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--file", file)
        for bucket in BUCKETS:
            _fetch_bucket(place, bucket, draft / "buckets" / bucket)
        files = {name: _sha256(draft / name) for name in _names(draft)}
        facts = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "segmill": version("segmill")}
        (draft / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def verify(folder: Path) -> dict[str, Any]:
    """Return what a backup says of itself. Raises InputError where a file is missing, was changed, or was added."""
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} is no backup: it has no {MANIFEST}") from None
    found = {name: _sha256(folder / name) for name in _names(folder) if name != MANIFEST}
    if wrong := sorted(name for name, _ in found.items() ^ facts["files"].items()):
        raise InputError(f"the backup {folder} was changed: {wrong[0]} is not what was backed up", "use another one")
    return facts


def restore_stores(place: Place, folder: Path) -> None:
    """Put a backup's stores in the place of those of a new stack, whose MLflow, Prefect and worker do not run.

    Raises InputError where the backup is damaged, or where the stack's buckets hold objects: it was used.
    """
    verify(folder)
    if used := [bucket for bucket in BUCKETS if next(_keys_of_bucket(_storage(place), bucket), None)]:
        raise InputError(f"the stack's bucket {used[0]} holds objects", "restore into a new stack")
    for bucket in BUCKETS:
        _send_bucket(place, bucket, folder / "buckets" / bucket)
    for database in DUMPED:
        with superuser(place) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
            make_database(connection, database)
        _postgres(place, database, "pg_restore", "--no-owner", "--exit-on-error", str(folder / f"{database}.dump"))
    for source, target in ((folder / "git", place.folder / "git"), (folder / "config", _keys(place))):
        if source.exists():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
    for secret in (folder / "secrets").iterdir():  # an earlier release's backup has fewer
        place.keep(secret.name, secret.read_text())


def _keys(place: Place) -> Path:
    """Return where segmill keeps the key that signs versions."""
    return place.folder / "home" / ".config" / "segmill"


def _postgres(place: Place, database: str, name: str, *options: str) -> None:
    """Run a program of PostgreSQL's on a database, as its owner; the password is in a file."""
    environment = {**surroundings(place), "PGPASSFILE": str(place.secret_file(f"{DATABASES[database]}.pgpass"))}
    command = [program_on_path(name), *options, "--dbname", database_url(place, database, "postgresql")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{name} failed on {database}: {done.stderr.strip()}")


def _storage(place: Place) -> Any:
    key = ConfigParser()
    key.read(place.secret_file("backup.aws"))
    return boto3.client("s3", endpoint_url=urls(place)["s3"], region_name=REGION, **dict(key["default"]))


def _keys_of_bucket(storage: Any, bucket: str) -> Iterator[str]:
    for page in storage.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        yield from (entry["Key"] for entry in page.get("Contents", []))


def _fetch_bucket(place: Place, bucket: str, folder: Path) -> None:
    storage = _storage(place)
    folder.mkdir(parents=True)
    for key in _keys_of_bucket(storage, bucket):
        target = folder / key
        if not target.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"bucket {bucket} has an object called {key}, which can't be a file of the backup")
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.download_file(bucket, key, str(target))


def _send_bucket(place: Place, bucket: str, folder: Path) -> None:
    storage = _storage(place)
    for name in _names(folder):
        storage.upload_file(str(folder / name), bucket, name)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
