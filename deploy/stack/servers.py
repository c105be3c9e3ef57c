"""The servers: what runs, on which port, with which settings; no command line holds a secret."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from deploy.stack import ray_node as ray_node_program
from deploy.stack.place import Place
from deploy.stack.processes import Server, program, program_on_path, surroundings
from deploy.stack.ray_node import LOOPBACK_ONLY
from segmill.errors import InputError

LOOPBACK = "127.0.0.1"
POOL = "segmill"
REGION = "us-east-1"
DATA_BUCKET, MODEL_BUCKET = "segmill-data", "segmill-models"
# Database and role of each user of PostgreSQL; MLflow's users are in a database of their own.
DATABASES = {"mlflow": "mlflow", "mlflow_users": "mlflow", "prefect": "prefect", "ledger": "pipeline"}
SERVICE = "service"  # the role of who serves, in the ledger's database
WEBHOOK_SECRET = "SEGMILL_WEBHOOK_SECRET"
# Else MLflow sends clients to S3 with signed addresses, which moto refuses.
THROUGH_SERVER = {"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false"}
OBJECT_STORE_BYTES = 200 * 2**20


def urls(place: Place) -> dict[str, str]:
    """Return the addresses of the stack; none holds a password."""
    http = {name: f"http://{LOOPBACK}:{place.ports[name]}" for name in ("s3", "mlflow", "prefect", "service")}
    return {
        **http,
        "prefect": f"{http['prefect']}/api",
        "ray": f"{LOOPBACK}:{place.ports['ray']}",
        "ledger": database_url(place, "ledger", "postgresql+psycopg"),
        "git": f"file://{place.folder / 'git'}",
    }


def database_url(place: Place, database: str, scheme: str, role: str = "") -> str:
    """Return a database's address for its owner, or for another role.

    Who uses it finds the password in the file that PGPASSFILE names.
    """
    return f"{scheme}://{role or DATABASES[database]}@{LOOPBACK}:{place.ports['postgres']}/{database}"


def pipeline_environment(place: Place) -> dict[str, str]:
    """Return the variables that let segmill work on the stack: addresses, and the rights of the pipeline."""
    where = urls(place)
    return {
        "MLFLOW_TRACKING_URI": where["mlflow"],
        "MLFLOW_TRACKING_USERNAME": "pipeline",
        "MLFLOW_TRACKING_PASSWORD": place.secret("mlflow-pipeline"),
        **THROUGH_SERVER,
        "PREFECT_API_URL": where["prefect"],
        "PREFECT_API_AUTH_STRING": _prefect_user(place),
        "RAY_ADDRESS": where["ray"],
        **_ray_access(place),
        "SEGMILL_LEDGER_URL": where["ledger"],
        "PGPASSFILE": str(place.secret_file("pipeline.pgpass")),
        "XDG_CONFIG_HOME": str(place.folder / "home" / ".config"),  # where the key is that signs versions
        WEBHOOK_SECRET: _webhook_secret(place),
        **s3_environment(place, "pipeline"),
    }


def service_environment(place: Place) -> dict[str, str]:
    """Return the variables of who serves: it reads versions and the ledger, and tells Prefect of an alarm."""
    where = urls(place)
    return {
        "MLFLOW_TRACKING_URI": where["mlflow"],
        "MLFLOW_TRACKING_USERNAME": "service",
        "MLFLOW_TRACKING_PASSWORD": place.secret("mlflow-service"),
        **THROUGH_SERVER,
        "PREFECT_API_URL": where["prefect"],
        "PREFECT_API_AUTH_STRING": _prefect_user(place),
        "SEGMILL_LEDGER_URL": database_url(place, "ledger", "postgresql+psycopg", SERVICE),
        "PGPASSFILE": str(place.secret_file(f"{SERVICE}.pgpass")),
        WEBHOOK_SECRET: _webhook_secret(place),
    }


def _webhook_secret(place: Place) -> str:
    """Return what webhooks to the service are signed with."""
    return f"whsec_{b64encode(place.secret('webhook').encode()).decode()}"


def s3_environment(place: Place, user: str) -> dict[str, str]:
    """Return the variables that let a program use the S3 API as ``user``."""
    credentials = str(place.secret_file(f"{user}.aws"))
    return {
        "AWS_ENDPOINT_URL": urls(place)["s3"],
        "AWS_DEFAULT_REGION": REGION,
        "AWS_SHARED_CREDENTIALS_FILE": credentials,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def postgres(place: Place) -> Server:
    """Return PostgreSQL, whose cluster is made where there is none; root can't run it, so that nobody does then."""
    data, owner = place.run / "postgres", _postgres_owner()
    if not data.exists():
        _initialise(place, data, owner)
    listen = ["-h", LOOPBACK, "-p", str(place.ports["postgres"]), "-k", ""]
    command = [program_on_path("postgres"), "-D", str(data), *listen]
    return Server("postgres", command, {}, place.ports["postgres"], lambda: _connects(place), owner)


def s3(place: Place) -> Server:
    """Return moto's server, an S3 API that keeps its objects in memory and unnamed temporary files."""
    command = [program("moto_server"), "-H", LOOPBACK, "-p", str(place.ports["s3"])]
    spool = {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**20)}  # larger objects go to the disk
    return Server("s3", command, spool, place.ports["s3"], _serves(f"{urls(place)['s3']}/moto-api/"))


def mlflow(place: Place) -> Server:
    """Return MLflow's server with its users; artifacts go through it, so that clients need no rights in the bucket."""
    users = place.keep(
        "mlflow-users.ini",
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = {database_url(place, 'mlflow_users', 'postgresql+psycopg')}\n"
        f"admin_username = admin\nadmin_password = {place.secret('mlflow-admin')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n",  # else each request hashes the password, and each file of a version is one
    )
    command = [
        program("mlflow"), "server", "--app-name", "basic-auth", "--host", LOOPBACK,
        "--port", str(place.ports["mlflow"]), "--workers", "1",
        "--backend-store-uri", database_url(place, "mlflow", "postgresql+psycopg"),
        "--artifacts-destination", f"s3://{MODEL_BUCKET}/mlflow",
    ]  # fmt: skip
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": place.secret("mlflow-cookies"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **THROUGH_SERVER,
        "PGPASSFILE": str(place.secret_file("mlflow.pgpass")),
        **s3_environment(place, "mlflow"),
    }
    return Server("mlflow", command, environment, place.ports["mlflow"], _serves(f"{urls(place)['mlflow']}/health"))


def prefect(place: Place) -> Server:
    """Return Prefect's server, on PostgreSQL, which asks for a user and a password."""
    command = [program("prefect"), "server", "start", "--host", LOOPBACK, "--port", str(place.ports["prefect"])]
    environment = {
        "PREFECT_HOME": str(place.folder / "home" / "prefect-server"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url(place, "prefect", "postgresql+asyncpg"),
        "PREFECT_SERVER_API_AUTH_STRING": _prefect_user(place),
        "PREFECT_SERVER_UI_API_URL": urls(place)["prefect"],  # its pages would ask at Prefect's usual port
        "PGPASSFILE": str(place.secret_file("prefect.pgpass")),
    }
    return Server("prefect", command, environment, place.ports["prefect"], lambda: bool(ask_prefect(place, "/health")))


def worker(place: Place) -> Server:
    """Return the Prefect worker that runs the deployed flows, with the rights of the pipeline."""
    command = [
        program("prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", "stack"
    ]  # fmt: skip
    environment = {"PREFECT_HOME": str(place.folder / "home" / "prefect"), **pipeline_environment(place)}

    def ready() -> bool:
        return b'"ONLINE"' in ask_prefect(place, f"/work_pools/{POOL}/workers/filter", b"{}")

    return Server("worker", command, environment, None, ready)


def service(place: Place) -> Server:
    """Return `segmill serve`, on a Ray of its own: whoever trains never keeps it from answering, nor it them."""
    command = [program("segmill"), "serve", "--port", str(place.ports["service"]), "-w", place.serves]
    ready = _serves(f"{urls(place)['service']}/healthz")
    return Server("service", command, service_environment(place), place.ports["service"], ready)


def ray_head(place: Place) -> Server:
    """Return Ray's head, with half of the cores."""
    options = ["--head", "--port", str(place.ports["ray"]), "--temp-dir", str(place.run / "ray")]
    options += ["--include-dashboard", "false", "--ray-client-server-port", str(place.ports["ray_client"])]
    return _ray(place, "ray-head", [program("ray"), "start", *options])


def delete_ray_sessions(place: Place) -> None:
    """Delete the folders of Ray's sessions but the last one's, whose logs say why it ended; no head may run.

    Each start of the head makes another.
    """
    for old in sorted((place.run / "ray").glob("session_[0-9]*"))[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def ray_node(place: Place) -> Server:
    """Return Ray's second node, with the other half."""
    command = [sys.executable, "-P", ray_node_program.__file__, "start", "--address", urls(place)["ray"]]
    return _ray(place, "ray-node", command)


def ask(url: str, body: bytes | None = None, *, user: str = "", kind: str = "application/json") -> bytes:
    """Return what an HTTP server answers; with a ``body``, of this content type, it is a POST. ``user``: NAME:PASSWORD.

    Raises urllib.error.HTTPError, an OSError, where it refuses.
    """
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    if user:
        request.add_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def ask_prefect(place: Place, path: str, body: bytes | None = None) -> bytes:
    """Ask Prefect's API as the pipeline."""
    return ask(urls(place)["prefect"] + path, body, user=_prefect_user(place))


def superuser(place: Place, database: str = "postgres") -> psycopg.Connection[Any]:
    """Connect to PostgreSQL as its superuser; each statement is a transaction."""
    return psycopg.connect(
        host=LOOPBACK, port=place.ports["postgres"], user="postgres", dbname=database,
        password=place.secret("postgres"), connect_timeout=5, autocommit=True,
    )  # fmt: skip


def _prefect_user(place: Place) -> str:
    return f"segmill:{place.secret('prefect')}"


def _ray_access(place: Place) -> dict[str, str]:
    place.secret("ray")
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(place.secret_file("ray")),
        LOOPBACK_ONLY: "0",
    }


def _ray(place: Place, name: str, start: list[str]) -> Server:
    ports = name.replace("-", "_")
    command = [
        *start, "--block", "--node-ip-address", LOOPBACK, "--disable-usage-stats",
        "--num-cpus", str(max(1, (os.cpu_count() or 2) // 2)), "--object-store-memory", str(OBJECT_STORE_BYTES),
        "--dashboard-agent-listen-port", str(place.ports[f"{ports}_agent"]),
        "--dashboard-agent-grpc-port", str(place.ports[f"{ports}_agent_grpc"]),
        "--min-worker-port", "0", "--max-worker-port", "0",  # free ones: two nodes share this machine
    ]  # fmt: skip
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {
        **_ray_access(place),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        # A version is judged where it is loaded: these fetch it, and may do no more.
        "MLFLOW_TRACKING_USERNAME": "ray",
        "MLFLOW_TRACKING_PASSWORD": place.secret("mlflow-ray"),
        **THROUGH_SERVER,
    }
    # It ends where its own processes take longer than 30 s, as they do on a busy machine.
    port = place.ports["ray"] if name == "ray-head" else None
    return Server(
        name, command, environment, port, lambda: b"Ray runtime started" in place.log(name).read_bytes(), tries=4
    )


def _serves(url: str) -> Callable[[], bool]:
    return lambda: bool(ask(url))


def _connects(place: Place) -> bool:
    superuser(place).close()
    return True


def _postgres_owner() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _initialise(place: Place, data: Path, owner: dict[str, Any]) -> None:
    """Make PostgreSQL's cluster. The superuser's password goes by a file that its own user reads, for that moment."""
    draft, password = data.with_name("postgres.draft"), data.with_name("postgres.password")
    shutil.rmtree(draft, ignore_errors=True)  # of a kill in its middle
    draft.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(place.secret("postgres"))
    if owner:
        for path in (draft, password):
            os.chown(path, owner["user"], owner["group"])
    command = [
        program_on_path("initdb"), "-D", str(draft), "-U", "postgres", "--pwfile", str(password),
        "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, env=surroundings(place), cwd=place.run, capture_output=True, text=True, **owner)
    finally:
        password.unlink()
    if done.returncode:
        raise InputError(f"PostgreSQL's initdb failed: {done.stderr.strip()}")
    draft.rename(data)
