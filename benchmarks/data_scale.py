"""What a data set costs as it grows: seconds and memory of the commands a person runs, for several sizes of set.

    python benchmarks/data_scale.py [--samples 10000 100000]

For each number of samples: street scenes of 128 x 128 px are drawn into a temporary folder, then `segmill init`,
`segmill validate`, prepare (as `segmill retrain` runs it: skip, run, record), `segmill status`, `segmill data add` of
more scenes, and prepare once more. Memory is the largest sum over all processes of a command of their proportional
share (PSS). At the end each step's growth is set against that of the samples: 1.0 is linear.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from pipeline_overhead import memory_bytes

from segmill.data.ingest.builtin import write_street
from segmill.workspace import Workspace

LOOK_EVERY_S = 0.2
SIZE_PX = (128, 128)
STAGES = """
import sys
from segmill.workspace import Workspace
from tasks.stage import bring_up_to_date
for stage in sys.argv[2:]:
    bring_up_to_date(Workspace.open(sys.argv[1]), stage)
"""


def main() -> None:
    options = _options()
    found = {count: measure(count, options.add, options.folder) for count in options.samples}
    least, most = min(found), max(found)
    if least == most:
        return
    print(f"growth from {least:,} to {most:,} samples, against linear:")
    for step, (seconds, mib) in found[least].items():
        growth = found[most][step][0] / seconds / (most / least)
        print(f"  {step:28} {growth:5.2f}   memory {mib:7.0f} -> {found[most][step][1]:7.0f} MiB")


def measure(count: int, more: int, folder: Path | None) -> dict[str, tuple[float, float]]:
    """Return seconds and peak MiB of each step for a set of ``count`` samples."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, space = Path(name), Workspace(Path(name) / "workspace")
        began = time.monotonic()
        write_street(root / "set", count=count, size=SIZE_PX)
        write_street(root / "more", count=more, size=SIZE_PX, first=count)
        print(f"{count:,} samples, drawn with {more:,} more in {time.monotonic() - began:.1f} s", flush=True)
        program = str(Path(sys.executable).with_name("segmill"))
        here = ["--workspace", str(space.root)]
        prepare = [sys.executable, "-c", STAGES, str(space.root), "fingerprint", "validate", "prepare"]
        steps = {
            "init": [program, "init", str(space.root), "--data", str(root / "set")],
            "validate": [program, "validate", *here],
            "prepare": prepare,
            "status": [program, "status", *here],
            "data add": [program, "data", "add", str(root / "more"), "--message", "more", *here],
            "validate after adding": [program, "validate", *here],
            "prepare after adding": prepare,
            "prepare without a change": prepare,
        }
        found = {}
        for step, command in steps.items():
            found[step] = watch(command)
            note = _prepared(space) if step in ("prepare", "prepare after adding") else ""
            print(f"  {step:28} {found[step][0]:8.1f} s {found[step][1]:8.0f} MiB{note}", flush=True)
    return found


def watch(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and the largest memory of it and all its processes, MiB."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        run = psutil.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while run.poll() is None:
            peak = max(peak, memory_bytes(run))
            time.sleep(LOOK_EVERY_S)
        if run.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with exit code {run.returncode}:\n{said.read().decode()}")
    return time.monotonic() - began, peak / 2**20


def _prepared(space: Workspace) -> str:
    facts = json.loads((space.shards / "last.json").read_text())
    decoded = f"decoded {facts['decoded']:,} of {facts['samples']:,} samples"
    return f"   {decoded}, wrote {facts['written']:,} of {facts['shards']:,} shards"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the set")
    parser.add_argument("--add", type=int, default=1_000, help="samples added afterwards (default 1000)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes; 40 GB for 100,000 samples")
    return parser.parse_args()


if __name__ == "__main__":
    main()
