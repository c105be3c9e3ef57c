"""`segmill gc` as a person types it: what it would delete, what it deleted, as text and as JSON."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from nights import Nights
from terminal import BIN, run, run_json

from flows.commands.start import create
from segmill.params_change import set_params
from tests.flows.commands.test_json import documented


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Nights:
    """Three nights, of which the first and the last were promoted."""
    nights = Nights(create(tmp_path_factory.mktemp("nights") / "workspace", street))
    nights.prepare()
    for number, action in enumerate(("promote", "refuse", "promote"), 1):
        nights.night(number, action, data=False)
    set_params(nights.workspace.params, ["keep.versions=1"])
    return nights


def age(root: Path, days: float) -> None:
    """Let everything be older: files by their times, versions by MLflow's."""
    import sqlite3

    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found = path.stat()
            os.utime(path, (found.st_atime, found.st_mtime - days * 86400))
    with sqlite3.connect(root / "mlflow.db") as database:
        shift = int(days * 86_400_000)
        database.execute("UPDATE model_versions SET creation_time = creation_time - ?", (shift,))


@pytest.mark.slow
@pytest.mark.long
def test_from_the_plan_to_a_rollback(nights: Nights) -> None:
    space = nights.workspace
    assert "there is nothing to delete" in run(space, "segmill", "gc", "--dry-run")
    age(space.root, 30)
    planned = run_json(space, "segmill", "gc", "--dry-run")
    assert set(planned) == documented()["gc"] and planned["dry_run"] is True
    assert planned["kept"] == {"1": "former champion", "3": "champion, alias challenger, of the newest 1"}
    assert {one["what"] for one in planned["removed"] if one["store"] == "registry"} == {f"version 2 of {nights.model}"}
    said = run(space, "segmill", "gc")
    assert f"version 2 of {nights.model}" in said and "version 1 stays: former champion" in said
    assert f"freed {planned['freed_bytes'] / 2**20:,.1f} MiB" in said
    assert "there is nothing to delete" in run(space, "segmill", "gc")
    done = subprocess.run([BIN / "segmill", "promote", "2", "--because", "x"], cwd=space.root, capture_output=True)
    assert done.returncode == 1 and b"were deleted" in done.stderr
    for version in ("1", "3"):
        assert "agree" in run(space, "segmill", "verify", f"{nights.model}/{version}", "--quick")
    assert f"version 1 of {nights.model} is the champion again" in run(
        space, "segmill", "rollback", "--because", "to see that it can"
    )
