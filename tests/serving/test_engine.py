"""OpenVINO's tests, engine_cases.py, in a process that did nothing before, as a replica is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("engine_cases.py")


def test_openvino_computes_only_what_it_computes_as_pytorch_does_and_faster() -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
