"""Which variables open something; nothing else is taken from a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from segmill.credentials import needed_by_work, without_credentials

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
    less = without_credentials(OPEN_SOMETHING | OPEN_NOTHING)
    assert OPEN_NOTHING.items() - less.items() == {
        ("RAY_AUTH_TOKEN", "joins the cluster"),
        ("HF_TOKEN", "fetches weights"),
    }
    assert less.items() <= OPEN_NOTHING.items()


def test_work_on_ray_reaches_mlflow_and_nothing_else() -> None:
    everything = OPEN_SOMETHING | OPEN_NOTHING
    kept = without_credentials(everything, keep=needed_by_work(everything))
    lost = {"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "SEGMILL_LEDGER_URL", "SEGMILL_SIGNING_KEY", "GITHUB_TOKEN"}
    assert everything.keys() - kept.keys() == {*lost, "ALERTS_WEBHOOK_SECRET"}


HELPERS = """
import json, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import psutil
from segmill.credentials import keep_from_helpers
if __name__ == "__main__":
    keep_from_helpers()
    found = {}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        found["work of the fork server"] = pool.submit(os.getenv, "PGPASSWORD").result()
        processes = psutil.Process().children(recursive=True)
        assert len(processes) >= 3, processes  # the resource tracker, the fork server, its child
        found["processes"] = sorted({process.environ().get("PGPASSWORD") for process in processes}, key=str)
        found["others"] = sorted({process.environ().get("OPENS_NOTHING") for process in processes}, key=str)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found["spawned work"] = pool.submit(os.getenv, "PGPASSWORD").result()
    found["here"] = os.environ["PGPASSWORD"]
    print(json.dumps(found))
"""


def test_helper_processes_get_none() -> None:
    environment = {**os.environ, "PGPASSWORD": "canary", "OPENS_NOTHING": "1"}
    done = subprocess.run([sys.executable, "-c", HELPERS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert json.loads(done.stdout) == {
        "work of the fork server": None,
        "processes": [None],
        "others": ["1"],
        "spawned work": "canary",
        "here": "canary",
    }
