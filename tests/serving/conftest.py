"""A database of each kind for what the service keeps in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import postgresql


@pytest.fixture(scope="package")
def server() -> Iterator[str]:
    if shutil.which("initdb") is None:
        pytest.skip("there is no PostgreSQL here")
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("server"))
