"""Writes the files with secrets that deploy/compose.yaml names: `python -m deploy.compose_secrets deploy/secrets`."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

from deploy.stack.servers import DATA_BUCKET, DATABASES, MODEL_BUCKET
from segmill.errors import InputError, SegmillError

BUCKETS = {"mlflow": MODEL_BUCKET, "pipeline": DATA_BUCKET}


def write(folder: Path) -> list[str]:
    """Write new secrets into a new folder, each file 0600, and return the names.

    Raises InputError where the folder is there: the running containers have its passwords.
    """
    if folder.exists():
        raise InputError(f"{folder} is there, and running containers have its passwords", "remove it to make new ones")
    contents = _contents()
    folder.mkdir(mode=0o700, parents=True)
    for name, content in contents.items():
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)
    return sorted(contents)


def _contents() -> dict[str, str]:
    roles = {role: _secret() for role in dict.fromkeys(DATABASES.values())}
    keys = {user: (secrets.token_hex(10).upper(), _secret()) for user in BUCKETS}
    prefect, admin = f"segmill:{_secret()}", _secret()
    pipeline = {
        "MLFLOW_TRACKING_USERNAME": "pipeline",
        "MLFLOW_TRACKING_PASSWORD": _secret(),
        "PREFECT_API_AUTH_STRING": prefect,
    }
    return {
        "postgres": _secret(),
        "roles.sql": "".join(_role(role, password) for role, password in roles.items()),
        **{f"{role}.pgpass": f"postgres:5432:*:{role}:{password}\n" for role, password in roles.items()},
        "s3.json": json.dumps({"identities": [_identity(user, *keys[user]) for user in BUCKETS]}, indent=1),
        **{f"{user}.aws": _credentials(*key) for user, key in keys.items()},
        "mlflow-users.ini": "[mlflow]\ndefault_permission = READ\n"
        "database_uri = postgresql+psycopg://mlflow@postgres/mlflow_users\n"
        f"admin_username = admin\nadmin_password = {admin}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n",  # else each request hashes the password, and each file of a version is one
        "mlflow.env": f"MLFLOW_FLASK_SERVER_SECRET_KEY={_secret()}\n",
        "prefect.env": f"PREFECT_SERVER_API_AUTH_STRING={prefect}\n",
        "pipeline.env": "".join(f"{name}={value}\n" for name, value in pipeline.items()),
        "ray.env": f"MLFLOW_TRACKING_USERNAME=ray\nMLFLOW_TRACKING_PASSWORD={_secret()}\n",
        "ray": _secret(),
    }


def _secret() -> str:
    return secrets.token_urlsafe(24)


def _role(role: str, password: str) -> str:
    made = [f"CREATE ROLE {role} LOGIN PASSWORD '{password}';\n"]
    for database in (name for name, owner in DATABASES.items() if owner == role):
        made.append(f"CREATE DATABASE {database} OWNER {role};\nREVOKE CONNECT ON DATABASE {database} FROM PUBLIC;\n")
    return "".join(made)


def _identity(user: str, key: str, secret: str) -> dict[str, object]:
    """Return a user of SeaweedFS's S3 API, with the rights in one bucket."""
    actions = [f"{action}:{BUCKETS[user]}" for action in ("Admin", "Read", "Write", "List", "Tagging")]
    return {"name": user, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def _credentials(key: str, secret: str) -> str:
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


def main() -> int:
    """Write the folder that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python -m deploy.compose_secrets FOLDER", file=sys.stderr)
        return 2
    try:
        names = write(Path(sys.argv[1]))
    except SegmillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(names)} files in {sys.argv[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
