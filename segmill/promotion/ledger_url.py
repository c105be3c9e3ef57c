"""Where a workspace's ledger is. Light to import."""

from __future__ import annotations

import os
from pathlib import Path

URL_VARIABLE = "SEGMILL_LEDGER_URL"


def ledger_url(root: Path, named: str | None = None) -> str:
    """Return the SQLAlchemy URL of a workspace's ledger: SEGMILL_LEDGER_URL, else ``named``, else ``ledger.db`` there.

    A relative SQLite path is taken from ``root``.
    """
    url = os.environ.get(URL_VARIABLE) or named or "sqlite:///ledger.db"
    path = url.removeprefix("sqlite:///")
    return f"sqlite:///{root / path}" if path != url else url
