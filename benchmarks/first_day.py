"""A newcomer's first day, command by command: wall seconds, exit codes, what plan forecast and what came, bytes.

    python benchmarks/first_day.py [--data FOLDER --more FOLDER] [--minutes 6] [--folder DIR]

Runs, each as a command of its own: init, validate, plan --accept, retrain, data add, retrain, status. FOLDER is any
labelled set that `segmill init` takes, MORE a second one of the same classes that is added later. Left out, street
scenes of many sizes are drawn, each a group of its own. Each line says how a command ended: its exit code (3: the gate
said no), and what it found in a few words. Then the forecast against the first run, the stores of the workspace, and
the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segmill.data.ingest.builtin import STREET_CLASSES, draw_street
from segmill.data.schema.manifest import DatasetInfo, write_dataset_info

FIRST, LATER = 120, 30
SIDES_PX = (96, 320)
SEGMILL = Path(sys.executable).parent / "segmill"
MAY_END_WITH = {"retrain": (0, 3)}  # 3: the gate said no


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="first-day-") as temporary:
        folder = Path(temporary)
        data, more = options.data, options.more
        if data is None:
            data, more = folder / "photos", folder / "more"
            draw(data, range(FIRST))
            draw(more, range(FIRST, FIRST + LATER))
        live(folder / "workspace", data, more, options.minutes)


def live(workspace: Path, data: Path, more: Path | None, minutes: float) -> None:
    """Run the day's commands in ``workspace`` and print what came of each."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    at = ("--workspace", str(workspace))
    run("init", str(workspace), "--data", str(data))
    found = run("validate", *at)
    print(f"    {found['splits']}")
    planned = run("plan", "--minutes", f"{minutes:g}", "--accept", *at)
    for remark in planned["remarks"]:
        print(f"    {remark}")
    began = time.monotonic()
    first = run("retrain", *at)
    took = (time.monotonic() - began) / 60
    trained = [json.loads(path.read_text()) for path in workspace.glob("models/members/*/metrics.json")]
    if more:
        run("data", "add", str(more), "--message", "more photos", *at)
        run("retrain", *at)
    state = run("status", *at)
    compare(planned["forecast"], trained, first["warnings"], took)
    weigh(state["bytes"], data, more)
    report = Path(state["last_run"]["report"])
    print(f"report  {report.stat().st_size / 2**20:.1f} MiB")


def run(*command: str) -> Any:
    """Run a command with --json, print its seconds and exit code, and return its object."""
    began = time.monotonic()
    done = subprocess.run([SEGMILL, *command, "--json"], capture_output=True, text=True)
    seconds = time.monotonic() - began
    name = "data add" if command[0] == "data" else command[0]
    found = json.loads(done.stdout)
    verdict = found.get("verdict") or {}
    print(f"{name:10} {seconds:7.1f} s  exit code {done.returncode}  {verdict.get('decision', '')}", flush=True)
    if done.returncode not in MAY_END_WITH.get(name, (0,)):
        raise SystemExit(done.stderr)
    return found


def compare(forecast: dict[str, Any], trained: list[dict[str, Any]], warnings: list[str], minutes: float) -> None:
    """Print plan's forecast of the first run beside its outcome: the mean over its members."""
    print(f"{'':10} {'forecast':>9} {'outcome':>9} {'ratio':>6}   (the first run, minutes of the command)")
    steps = sum(one["steps"] for one in trained) / len(trained)
    epochs = sum(one["steps"] / one["steps_per_epoch"] for one in trained) / len(trained)
    for name, came in (("steps", steps), ("epochs", epochs), ("minutes", minutes)):
        print(f"{name:10} {forecast[name]:9.1f} {came:9.1f} {came / forecast[name]:6.2f}")
    for warning in warnings:
        print(f"    {warning}")


def weigh(stores: dict[str, int], *sets: Path | None) -> None:
    """Print the bytes of each store, and of all against the sets'."""
    given = sum(path.stat().st_size for one in sets if one for path in one.rglob("*") if path.is_file())
    for name, size in stores.items():
        print(f"{name:10} {size / 2**20:9.1f} MiB  {size / given:6.2f} x the set")


def draw(folder: Path, numbers: range) -> None:
    """Write street scenes with sides from SIDES_PX: photos as JPEG, masks as PNG."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in numbers:
        height, width = np.random.default_rng([7, number]).integers(*SIDES_PX, 2).tolist()
        image_HWC, mask_HW = draw_street((height, width), seed=7, sequence=number, frame=0)
        cv2.imwrite(str(folder / "images" / f"photo_{number:03d}.jpg"), image_HWC[:, :, ::-1])
        cv2.imwrite(str(folder / "masks" / f"photo_{number:03d}.png"), mask_HW)
    write_dataset_info(folder, DatasetInfo(name="photos", classes=STREET_CLASSES))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a labelled set (default: drawn)")
    parser.add_argument("--more", type=Path, help="samples that are added after the first run")
    parser.add_argument("--minutes", type=float, default=6, help="of plan (default 6)")
    parser.add_argument("--folder", type=Path, help="where the workspace lies meanwhile (default: temporary)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
