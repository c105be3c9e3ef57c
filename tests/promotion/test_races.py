"""Promoters that race and are killed between two writes leave one champion: a short run of the benchmark."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "promotion_races.py"


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.long
def test_races_leave_one_champion_and_no_verdict_is_lost_or_recorded_twice(database: str) -> None:
    if database == "postgres" and shutil.which("initdb") is None:
        pytest.skip("there is no PostgreSQL here")
    command = [sys.executable, str(SCRIPT), "--rounds", "8", "--database", database, "--seed", "14", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["violations"] == [] and said["promoters"] >= 16 and sum(said["kills"].values()) >= 3
