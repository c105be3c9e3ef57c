"""Damaged images of every format are refused or decoded, and nothing else comes of them; 10,000 by the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTCOMES = {"200 decoded", "413 the image has", "422 the image was refused"}


def test_damaged_images_cost_no_decoder_and_no_other_request() -> None:
    command = [sys.executable, "benchmarks/fuzzed_images.py", "--bodies", "500", "--seed", "7", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found["counts"].values()) == 500 and set(found["counts"]) <= OUTCOMES, found
    assert found["counts"]["200 decoded"] > 20 and found["counts"]["422 the image was refused"] > 100
    assert found["whole_images_that_came_out_wrong"] == 0 and found["decoder_peak_mb"] < 512
