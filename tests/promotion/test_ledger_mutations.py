"""What is changed in a ledger is found: one of each kind of the benchmark's mutations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = 33


def test_each_kind_of_change_is_found_and_an_unchanged_ledger_is_whole() -> None:
    command = [sys.executable, "benchmarks/ledger_mutations.py", "--mutations", str(KINDS), "--seed", "7", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (said["found"], len(said["kinds"]), said["missed"], said["unchanged"]) == (KINDS, KINDS, [], [])
