"""Runs the demo in a fresh folder and says where its time goes and how much memory it takes.

    python benchmarks/pipeline_overhead.py [--runs 3]

Watches the progress files ten times a second. Compute is the time in which a member trains (from its first step
on), or the stage ensemble or evaluate runs; the rest is overhead. Memory is the sum over all processes of the run
of their proportional share (PSS), once a second. Then, in the same folder, `segmill retrain` once more without a
change, and once with another seed, interrupted at its first training step.
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
    began = time.monotonic()
    run = segmill("demo", folder)
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
        "seconds of a run without change": seconds_without_change(folder),
        "seconds to the first training step, warm": seconds_to_first_step(folder),
    }


def segmill(command: str, folder: Path, *options: str) -> psutil.Popen:
    """Start a command of segmill on the workspace ``folder``."""
    program = Path(sys.executable).with_name("segmill")
    return psutil.Popen([str(program), command, "--workspace", str(folder), *options], stdout=subprocess.DEVNULL)


def seconds_without_change(folder: Path) -> float:
    began = time.monotonic()
    if code := segmill("retrain", folder).wait():
        raise SystemExit(f"the run without change ended with exit code {code}")
    return time.monotonic() - began


def seconds_to_first_step(folder: Path) -> float:
    """Retrain all members under another seed, up to the first step of any."""
    began = time.monotonic()
    run = segmill("retrain", folder, "--set", "train.seed=1")
    while not look(Workspace(folder).progress)[0]:
        if run.poll() is not None:
            raise SystemExit(f"no member trained; exit code {run.returncode}")
        time.sleep(LOOK_EVERY_S)
    passed = time.monotonic() - began
    run.terminate()
    run.wait()
    return passed


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
