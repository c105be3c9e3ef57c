"""Runs the demo in a fresh folder and says where its time goes and how much memory it takes.

    python benchmarks/pipeline_overhead.py [--runs 3]

Watches the progress files ten times a second. Compute is the time in which a member trains (from its first step
on), or the stage ensemble or evaluate runs; the rest is overhead. Memory is the sum over all processes of the run
of their proportional share (PSS), once a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from segmill import progress
from segmill.workspace import Workspace

LOOK_EVERY_S = 0.1
STALE_AFTER_S = 5.0


def measure(folder: Path) -> dict[str, float]:
    """Run the demo in ``folder`` once."""
    command = [str(Path(sys.executable).with_name("segmill")), "demo", "--workspace", str(folder)]
    began = time.monotonic()
    run = psutil.Popen(command, stdout=subprocess.DEVNULL)
    notes = Workspace(folder).progress
    compute_s, first_step_s, peak_bytes, weighed = 0.0, 0.0, 0, 0.0
    before = time.monotonic()
    while run.poll() is None:
        time.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        training, judging = look(notes)
        if training and not first_step_s:
            first_step_s = now - began
        if training or judging:
            compute_s += now - before
        before = now
        if now - weighed > 1:
            peak_bytes, weighed = max(peak_bytes, memory_bytes(run)), now
    wall_s = time.monotonic() - began
    if run.returncode:
        raise SystemExit(f"the demo ended with exit code {run.returncode}")
    metrics = json.loads(Workspace(folder).metrics.read_text())
    return {
        "pipeline seconds": wall_s,
        "seconds to the first training step": first_step_s,
        "overhead seconds": wall_s - compute_s,
        "overhead %": 100 * (1 - compute_s / wall_s),
        "peak memory GiB": peak_bytes / 2**30,
        "disk MiB": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20,
        "ensemble test mIoU": metrics["ensemble"]["miou"],
        "best member test mIoU": max(member["miou"] for member in metrics["members"].values()),
    }


def look(notes: Path) -> tuple[bool, bool]:
    """Tell whether a member trains, and whether the ensemble is being chosen or judged, at this moment."""
    training = False
    for path in notes.glob("finetune@*.member.json"):
        member = progress.read(path) or {}
        training |= member.get("state") == "training" and time.time() - member["time"] < STALE_AFTER_S
    stages = [progress.read(notes / f"{name}.json") or {} for name in ("ensemble", "evaluate")]
    return training, any(stage.get("state") == "running" for stage in stages)


def memory_bytes(run: psutil.Process) -> int:
    """Return the memory of a process and all below it, shared pages counted once."""
    total = 0
    for process in (run, *run.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3, help="how often (default 3)")
    runs = []
    for _ in range(arguments.parse_args().runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder) / "demo"))
            print({name: round(value, 3) for name, value in runs[-1].items()}, flush=True)
    print(f"median of {len(runs)} (least .. most)")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"  {name:36} {statistics.median(values):9.3f}  ({min(values):.3f} .. {max(values):.3f})")


if __name__ == "__main__":
    main()
