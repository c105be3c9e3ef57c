"""What `segmill plan` says of a run against what came of it: steps, epochs and minutes, on up to four sets.

    python benchmarks/forecast.py [--minutes 3] [--sets brain street photos] [--camvid FOLDER] [--rounds 2]

For each set: a fresh workspace, `validate`, `plan --accept`, `retrain`. Steps and epochs are the mean of the members,
minutes are those of the whole `segmill retrain`. Speeds are kept in a cache of the benchmark's own: the machine is
measured once, and what trains corrects it, so that a second round shows what the correction gave. The load of other
work is said: where it changes between plan and run, so does the outcome.
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
from statistics import fmean
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images

from flows.commands.plan import plan
from flows.commands.start import create, create_demo
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.tuning.forecast import Forecast
from segmill.workspace import Workspace

SETS = ("brain", "street", "photos")
PHOTOS, SHORTEST_PX, LONGEST_PX = 160, 120, 520
GREEN, BLUE = 1, 2


class Outcome(NamedTuple):
    """What came of a run, and the load before it, in processes."""

    steps: float
    epochs: float
    minutes: float
    load: float


def main() -> None:
    options = _options()
    names = [*options.sets, *(["camvid"] if options.camvid else [])]
    rows: list[tuple[str, Forecast, Outcome]] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="forecast-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        for number in range(1, options.rounds + 1):
            for name in names:
                workspace = make_workspace(Path(folder) / f"{name}-{number}", name, options.camvid)
                rows.append((f"{name} {number}", *forecast_and_run(workspace, options.minutes)))
                show(rows[-1:])
    print(f"{os.cpu_count()} cores; plan --minutes {options.minutes:g}")
    show(rows)


def make_workspace(folder: Path, name: str, camvid: Path | None) -> Workspace:
    """Make a workspace of one of the sets at ``folder``."""
    if name in ("brain", "street"):
        return create_demo(folder, sample=name, more=False)
    if name == "camvid":
        assert camvid is not None
        return create(folder, camvid)
    source = folder.with_suffix(".photos")
    write_photos(source)
    workspace = create(folder, source)
    set_params(workspace.params, ["data.accept=[near_duplicate]"])  # cuts of one photo overlap
    return workspace


def write_photos(folder: Path) -> None:
    """Write PHOTOS cuts of scikit-learn's two photos in as many sizes, with masks of what is green and what is blue."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(PHOTOS):
        photo = Image.fromarray(load_sample_images().images[number % 2])
        width, height = (int(side * rng.uniform(0.4, 1.0)) for side in photo.size)
        left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
        cut = photo.crop((left, top, left + width, top + height))
        cut.thumbnail((int(rng.integers(SHORTEST_PX, LONGEST_PX)),) * 2)
        pixels = np.asarray(cut).astype(int)
        red, green, blue = (pixels[..., channel] for channel in range(3))
        mask = np.where(green > np.maximum(red, blue), GREEN, np.where(blue > np.maximum(red, green), BLUE, 0))
        cut.save(folder / "images" / f"photo{number:03d}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"photo{number:03d}.png")


def forecast_and_run(workspace: Workspace, minutes: float) -> tuple[Forecast, Outcome]:
    """Plan ``minutes`` for the workspace, take what is proposed, and run."""
    segmill("validate", workspace)
    load = os.getloadavg()[0]
    began = time.perf_counter()
    planned = plan(workspace, read_params(workspace.params), minutes, Console(), accepted=True)
    print(f"plan took {time.perf_counter() - began:.0f} s; load before it {load:.1f}", flush=True)
    load, began = os.getloadavg()[0], time.perf_counter()
    segmill("retrain", workspace)
    seconds = time.perf_counter() - began
    members = [json.loads((workspace.member(name) / "metrics.json").read_text())
               for name in read_params(workspace.params).members]  # fmt: skip
    steps = fmean(one["steps"] for one in members)
    epochs = fmean(one["steps"] / one["steps_per_epoch"] for one in members)
    return planned.forecast, Outcome(steps, epochs, seconds / 60, load)


def segmill(command: str, workspace: Workspace) -> None:
    """Run a command; a verdict against the new model (3) is no failure here."""
    line = [sys.executable, "-m", "flows.commands.cli", command, "--workspace", str(workspace.root)]
    done = subprocess.run(line, check=False, stdin=subprocess.DEVNULL)
    if done.returncode not in (0, 3):
        raise SystemExit(f"segmill {command} ended with exit code {done.returncode}")


def show(rows: list[tuple[str, Forecast, Outcome]]) -> None:
    """Print forecasts, outcomes and their ratios."""
    figures = ("steps", "epochs", "minutes")
    print(f"{'set':>10}" + "".join(f"{one:>12}{'came':>8}{'ratio':>7}" for one in figures) + f"{'load':>7}")
    for name, forecast, outcome in rows:
        pairs = [(getattr(forecast, one), getattr(outcome, one)) for one in figures]
        cells = "".join(f"{said:12.1f}{came:8.1f}{came / said:7.2f}" for said, came in pairs)
        print(f"{name:>10}{cells}{outcome.load:7.1f}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3, help="time of each run")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--camvid", type=Path, help="SegNet's copy of CamVid: train.txt, train/, trainannot/, val ...")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary workspaces go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
