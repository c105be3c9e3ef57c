"""Events for Prefect's server: one that is away stops nothing; one that is there: tests/end_to_end/test_schedule.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from postings import free_port
from terminal import run

from segmill.workspace import Workspace


@pytest.fixture
def more(tmp_path: Path, street: Path) -> Path:
    """A set of one more sample than the workspace has."""
    shutil.copytree(street, tmp_path / "more")
    for kind in ("images", "masks"):
        first, *others = sorted((tmp_path / "more" / kind).iterdir())
        for path in others:
            path.unlink()
        first.rename(first.with_name("new_s0099_f00.png"))
    return tmp_path / "more"


def test_a_server_that_is_away_is_one_line_and_the_data_are_there(workspace: Workspace, more: Path) -> None:
    named = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    said = run(workspace, "segmill", "data", "add", str(more), "-m", "one more", servers=named)
    assert "1 samples added" in said and "does not answer" in said and "no run begins because of these data" in said
