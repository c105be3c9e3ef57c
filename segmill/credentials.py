"""Environment variables that open something, and the environment without them for processes that need none. Light."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_NAMES = re.compile(
    r"(?i)PASSW|PWD_|SECRET|TOKEN|CREDENTIAL|API_KEY|ACCESS_KEY|SIGNING_KEY|AUTH_STRING|PGPASSFILE|LEDGER_URL"
    r"|CONNECTION_URL|WEBHOOK|MLFLOW_TRACKING_"
)
_NEEDED_BY_WORK = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "HF_TOKEN", "HF_TOKEN_PATH")  # joins Ray, fetches weights
_HOLDS_PASSWORD = re.compile(r"://[^/\s]*:[^/\s]*@")


def without_credentials(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without what opens MLflow, Prefect, databases and buckets, or signs.

    A variable is left out by its name, or because its value is an address with a password.
    """
    return {name: value for name, value in environment.items() if not _opens(name, value)}


def _opens(name: str, value: str) -> bool:
    return name not in _NEEDED_BY_WORK and bool(_NAMES.search(name) or _HOLDS_PASSWORD.search(value))
