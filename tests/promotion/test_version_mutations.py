"""One of each kind of change that whoever writes to MLflow's store can make: the benchmark's short selection."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "version_mutations.py"


@pytest.mark.long
@pytest.mark.slow
def test_each_kind_of_mutation_is_refused_and_the_version_itself_is_not(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--mutations", "23", "--seed", "7", "--megabytes", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["found"], found["controls"], len(found["kinds"])) == (23, 2, 23)
