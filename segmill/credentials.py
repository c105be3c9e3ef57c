"""Environment variables that open something, and the environment without them for processes that need none. Light."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMES = re.compile(
    r"(?i)PASSW|PWD_|SECRET|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY|SIGNING_KEY|AUTH_STRING|PGPASSFILE|LEDGER_URL"
    r"|CONNECTION_URL|WEBHOOK|MLFLOW_TRACKING_"
)
_NEEDED_BY_WORK = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HF_TOKEN", "HF_TOKEN_PATH")  # joins Ray, fetches weights
_REACHES_MLFLOW = re.compile(r"(?i)^MLFLOW_TRACKING_|^AWS_|^AZURE_|^GOOGLE_|^PGPASS|_PROXY$")  # and where its files are
_HOLDS_PASSWORD = re.compile(r"://[^/\s]*:[^/\s]*@")
_helpers: list[subprocess.Popen[bytes]] = []  # multiprocessing waits for them itself


def without_credentials(environment: Mapping[str, str] = os.environ, *, keep: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment without what opens MLflow, Prefect, databases and buckets, or signs.

    A variable is left out by its name, or because its value is an address with a password; those of ``keep`` stay.
    """
    return {name: value for name, value in environment.items() if name in keep or not _opens(name, value)}


def needed_by_work(environment: Mapping[str, str]) -> list[str]:
    """Return the names of what work on Ray needs: it fetches weights, and from MLflow the versions to judge."""
    return [name for name in environment if name in _NEEDED_BY_WORK or _REACHES_MLFLOW.search(name)]


def keep_from_helpers() -> None:
    """Start the helper processes of multiprocessing (fork server, resource tracker) without credentials from now on.

    The fork server's children read untrusted files. Python has no setting for their environment. What is started with
    the method "spawn" keeps this process's: it runs what this process could run.
    """
    from multiprocessing import util

    theirs = util.spawnv_passfds

    def start(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if any("spawn_main" in os.fsdecode(arg) for arg in args):
            return theirs(path, args, passfds)
        bare = without_credentials()
        _helpers.append(subprocess.Popen(args, executable=path, pass_fds=passfds, env=bare, restore_signals=False))
        return _helpers[-1].pid

    util.spawnv_passfds = start


def _opens(name: str, value: str) -> bool:
    return bool(_NAMES.search(name) or _HOLDS_PASSWORD.search(value))
