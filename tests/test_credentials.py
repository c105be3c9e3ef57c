"""Which variables open something; nothing else is taken from a process."""

from __future__ import annotations

from segmill.credentials import without_credentials

OPEN_SOMETHING = {
    "MLFLOW_TRACKING_PASSWORD": "canary",
    "MLFLOW_TRACKING_TOKEN": "canary",
    "MLFLOW_TRACKING_URI": "http://user:canary@mlflow:5000",
    "PREFECT_API_KEY": "canary",
    "PREFECT_API_AUTH_STRING": "user:canary",
    "SEGMILL_LEDGER_URL": "postgresql://user:canary@db/ledger",
    "SEGMILL_SIGNING_KEY": "-----BEGIN PRIVATE KEY-----",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "AWS_SESSION_TOKEN": "canary",
    "AWS_SHARED_CREDENTIALS_FILE": "/run/secrets/aws",
    "PGPASSWORD": "canary",
    "PGPASSFILE": "/run/secrets/pgpass",
    "ALERTS_WEBHOOK_SECRET": "canary",
    "HTTPS_PROXY": "http://user:canary@proxy:3128",
    "GITHUB_TOKEN": "canary",
}
OPEN_NOTHING = {
    "PATH": "/usr/bin:/bin",
    "PWD": "/work",
    "OMP_NUM_THREADS": "2",
    "RAY_ADDRESS": "10.0.0.1:6379",
    "RAY_AUTH_TOKEN": "joins the cluster",
    "HF_TOKEN": "fetches weights",
    "PREFECT_API_URL": "http://127.0.0.1:4200/api",
    "LS_COLORS": "a:b@c",
}


def test_what_opens_something_is_left_out() -> None:
    assert without_credentials(OPEN_SOMETHING | OPEN_NOTHING) == OPEN_NOTHING
