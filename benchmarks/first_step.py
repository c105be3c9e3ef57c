"""Says how long `segmill retrain` takes until the last of three members has made its first step, and where it goes.

    python benchmarks/first_step.py [--runs 5] [--project DIR ...] [--folder DIR] [--only first-step|unchanged]

Makes a workspace with the template's three members and a few small images, and retrains there under another seed each
time, warm: what comes before the training is up to date. Each run ends at the last member's first step. CPU seconds
are counted by kind of process, to the end of the run. Then the times of commands that change nothing, in a second
workspace with a tiny member that is trained once. Each `--project` is another checkout of segmill, with a workspace of
its own: revisions take turns, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from segmill import progress
from segmill.workspace import Workspace

LOOK_EVERY_S = 0.1
MEMBERS = 3
WHAT = ("first-step", "unchanged")
TIMEOUT_S = 300
# What a process is, by a part of its command line; the first that fits counts.
KINDS = {
    "ray::TrainController": "Ray Train's controllers",
    "ray::RayTrainWorker": "members: import, build, first step",
    "ray::_RayTrainWorker": "members: import, build, first step",
    "ray::SynchronizationActor": "Ray Train's synchronisation",
    "ray::DatasetManager": "Ray Train's dataset managers",
    "ray::PlacementGroupCleaner": "Ray Train's placement group cleaners",
    "ray::_AutoscalingCoordinator": "Ray Train's coordinator",
    "ray::": "Ray's other workers",
    "default_worker.py": "Ray's other workers",
    "gcs_server": "Ray's own processes",
    "raylet": "Ray's own processes",
    "ray/": "Ray's own processes",
    "prefect": "Prefect's server",
    "uvicorn": "Prefect's server",
    "multiprocessing": "other",
}


@dataclass(frozen=True)
class Project:
    """A checkout of segmill and its workspaces."""

    root: Path
    workspace: Path
    done: Path

    def start(self, *arguments: str) -> psutil.Popen:
        """Start this checkout's `segmill`."""
        scripts = tomllib.loads((self.root / "pyproject.toml").read_text())["project"]["scripts"]
        module, function = scripts["segmill"].split(":")
        code = f"import sys; sys.argv[0] = 'segmill'; from {module} import {function}; {function}()"
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        own = self.root / ".venv" / "bin" / "python"  # another revision may need other libraries
        command = [str(own) if own.exists() else sys.executable, "-c", code, *arguments]
        return psutil.Popen(command, env=environment, cwd=self.root, stdout=subprocess.DEVNULL)

    def seconds(self, *arguments: str) -> float:
        """Run it to its end."""
        began = time.monotonic()
        if code := self.start(*arguments).wait():
            raise SystemExit(f"{self.root}: segmill {' '.join(arguments)} ended with exit code {code}")
        return time.monotonic() - began


def make_three(project: Project, data: Path) -> None:
    """Make the workspace of three members, with all stages before the training up to date."""
    project.seconds("init", str(project.workspace), "--data", str(data))
    first_steps(project, seed=1)


def make_done(project: Project, data: Path) -> None:
    """Make the workspace in which nothing is to do: one tiny member is trained."""
    project.seconds("init", str(project.done), "--data", str(data))
    text = (project.done / "params.yaml").read_text()
    head, _, rest = text.partition("\nmembers:")
    tail = rest[rest.index("\nensemble:") :]
    member = "\n  one: {backbone: mobilenetv3_small_050, decoder: fpn, weights: none, lr: 0.001, epochs: 1}\n"
    (project.done / "params.yaml").write_text(f"{head}\nmembers:{member}{tail}")
    if (code := project.start("retrain", "--workspace", str(project.done)).wait()) not in (0, 3):  # 3: the gate said no
        raise SystemExit(f"{project.root}: the run to the end ended with exit code {code}")


def make_data(folder: Path) -> None:
    """Write 24 images of noise with a square in each, in the canonical layout."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(24):
        image_HWC = rng.integers(0, 128, (192, 160, 3), np.uint8)
        mask_HW = np.zeros((192, 160), np.uint8)
        top, left = rng.integers(0, 96, 2)
        mask_HW[top : top + 64, left : left + 64] = 1
        image_HWC[mask_HW == 1] += 100
        Image.fromarray(image_HWC).save(folder / "images" / f"scene{number}.png")
        Image.fromarray(mask_HW).save(folder / "masks" / f"scene{number}.png")
    (folder / "dataset.yaml").write_text(
        "name: squares\nclasses:\n  - {id: 0, name: ground, color: '#000000'}\n"
        "  - {id: 1, name: square, color: '#ff0000'}\nignore_id: 255\n"
    )


def first_steps(project: Project, seed: int) -> dict[str, float]:
    """Retrain under ``seed`` until all members have made a step; return seconds since the start, and CPU seconds."""
    began, wall = time.monotonic(), time.time()
    run = project.start("retrain", "--workspace", str(project.workspace), "--set", f"train.seed={seed}")
    notes = Workspace(project.workspace).progress
    marks: dict[str, float] = {}
    spent: dict[int, tuple[str, float]] = {}
    while len(steps := {name for name in marks if name.startswith("step")}) < MEMBERS:
        if run.poll() is not None or time.monotonic() - began > TIMEOUT_S:
            run.terminate()
            raise SystemExit(f"{project.root}: no first step of all members; exit code {run.wait()}; {steps}")
        time.sleep(LOOK_EVERY_S)
        weigh(run, spent)
        for path in notes.glob("*.json"):
            facts = progress.read(path) or {}
            if path.stat().st_mtime < wall:
                continue
            passed = path.stat().st_mtime - wall
            if path.name.endswith(".member.json"):
                if facts.get("state") == "training":
                    marks.setdefault(f"step {path.name}", passed)
                else:
                    marks.setdefault("Ray Train is called", passed)
            else:
                marks.setdefault("the flow runs its first step", passed)
    members = sorted(passed for name, passed in marks.items() if name.startswith("step"))
    weigh(run, spent)
    end(run)
    cpu: dict[str, float] = defaultdict(float)
    for kind, seconds in spent.values():
        cpu[f"CPU s: {kind}"] += seconds
    return {
        "s: the flow runs its first step": marks.get("the flow runs its first step", float("nan")),
        "s: Ray Train is called": marks.get("Ray Train is called", float("nan")),
        "s: first member's first step": members[0],
        "s: last member's first step": members[-1],
        "CPU s: all": sum(cpu.values()),
        **dict(sorted(cpu.items())),
    }


def end(run: psutil.Popen) -> None:
    """Interrupt a run; what has not ended by itself a minute later is killed."""
    processes = [run, *run.children(recursive=True)]
    run.terminate()
    for process in psutil.wait_procs(processes, timeout=60)[1]:
        process.kill()


def weigh(run: psutil.Process, spent: dict[int, tuple[str, float]]) -> None:
    """Note the CPU seconds of each process below ``run``, by its id."""
    try:
        processes = [run, *run.children(recursive=True)]
    except psutil.Error:
        return
    for process in processes:
        try:
            line = " ".join(process.cmdline())
            times = process.cpu_times()
        except psutil.Error:
            continue
        named = next((kind for part, kind in KINDS.items() if part in line), "the flow's process")
        kind = named if process.pid != run.pid else "the flow's process"
        spent[process.pid] = kind, times.user + times.system


def unchanged(project: Project) -> dict[str, float]:
    """Return the seconds of commands that find nothing to do."""
    at = ("--workspace", str(project.done))
    return {
        "s: retrain without a change": project.seconds("retrain", *at),
        "s: segmill status": project.seconds("status", *at),
        "s: segmill --help": project.seconds("--help"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often (default 5)")
    parser.add_argument("--project", type=Path, action="append", help="a checkout; may be given again (default: this)")
    parser.add_argument("--folder", type=Path, help="where the workspaces are kept for another time (default: nowhere)")
    parser.add_argument("--only", choices=WHAT, help="measure one of the two")
    arguments = parser.parse_args()
    roots = arguments.project or [Path(__file__).parents[1]]
    with tempfile.TemporaryDirectory() as temporary:
        compare(arguments.folder or Path(temporary), roots, arguments.runs, arguments.only)


def compare(folder: Path, roots: list[Path], runs: int, only: str | None) -> None:
    """Measure each checkout ``runs`` times, in turn, and print medians."""
    if not (folder / "data").exists():
        make_data(folder / "data")
    projects = []
    for root in map(Path.resolve, roots):
        projects.append(Project(root, folder / root.name / "three", folder / root.name / "done"))
        if only != "unchanged" and not projects[-1].workspace.exists():
            make_three(projects[-1], folder / "data")
        if only != "first-step" and not projects[-1].done.exists():
            make_done(projects[-1], folder / "data")
    found: list[list[dict[str, float]]] = [[] for _ in projects]
    for run in range(runs):
        turn = list(enumerate(projects))
        for number, project in turn if run % 2 == 0 else reversed(turn):
            figures = {} if only == "unchanged" else first_steps(project, seed=int(time.time()))
            figures |= {} if only == "first-step" else unchanged(project)
            found[number].append(figures)
            print(project.root, {key: round(value, 1) for key, value in figures.items()}, flush=True)
    for project, figures_of_runs in zip(projects, found, strict=True):
        print(f"{project.root}: median of {runs} (least .. most)")
        for name in dict.fromkeys(name for figures in figures_of_runs for name in figures):
            values = [figures.get(name, 0.0) for figures in figures_of_runs]
            print(f"  {name:50} {statistics.median(values):7.2f}  ({min(values):.2f} .. {max(values):.2f})")


if __name__ == "__main__":
    main()
