"""Trains two revisions on one machine and says whether their loss curves and weights are equal bit for bit.

    python benchmarks/compare_revisions.py 2d2f2c2 HEAD [--set train.optimizer=muon ...]

A revision is a git ref or the folder of a checkout. Both get a workspace around the same drawn street scenes and run
`segmill retrain` with the same settings; then the curves.csv and weights.safetensors of each member, and the ensemble's
test mIoU, are compared. Settings have the names of today; a revision that refuses one gets its former name. Ends with
exit code 1 where anything differs. Each member trains on one core: sums of more would depend on who came first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from segmill.data.ingest.builtin import write_street
from segmill.renamed_keys import RENAMED

FORMER = {new: old for names in RENAMED.values() for old, new in names.items()}
# The command has moved, so it is looked for.
COMMAND = """
import sys
try:
    from flows.commands.cli import main
except ModuleNotFoundError:
    from flows.cli import main
sys.exit(main())
"""
SMALL = "backbone: mobilenetv3_small_050, weights: none, lr: 0.003"
SETTINGS = (
    "prepare.size_px=[64, 64]",
    "augment={recipe: driving, copy_paste: 0.2, oversample: 0.2, rare_below: 0.1}",
    "train={epochs: 3, batch_size: 4, precision: fp32, seed: 1}",
    "members={"
    f"fpn: {{{SMALL}, decoder: fpn, ema_decay: 0.9}}, "
    f"unet: {{{SMALL}, decoder: unet, aux_heads: {{boundary: 0.3}}, deep_supervision: 0.4, grad_accum_steps: 2, "
    "optimizer: sgd, max_grad_norm: 1.0}, "
    "svm: {kind: svm, pixels: 2000, components: 50}}",
    "promotion.floor_miou=0",
    "ray.cpus_per_worker=1",
)


def checkout(revision: str, scratch: Path) -> Path:
    """Return the folder of ``revision``: itself where it is one, else a copy of that git tree under ``scratch``."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    folder = scratch / "source"
    folder.mkdir()
    tree = subprocess.run(["git", "archive", revision], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=tree, check=True)
    return folder


def segmill(source: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the revision in ``source``; whatever it starts imports from there too."""
    environment = os.environ | {"PYTHONPATH": str(source), "COLUMNS": "2000"}  # no line of an error is broken
    command = [sys.executable, "-c", COMMAND, *words]
    return subprocess.run(command, env=environment, cwd=source, text=True, capture_output=True)


def retrain(source: Path, workspace: Path, raw: Path, settings: list[str]) -> None:
    """Make ``workspace`` around ``raw`` and retrain in it with ``settings``."""
    made = segmill(source, "init", str(workspace), "--data", str(raw), "--name", "street")
    if made.returncode:
        raise SystemExit(f"init ended with exit code {made.returncode}: {made.stdout}{made.stderr}")
    while True:
        words = [word for setting in settings for word in ("--set", setting)]
        run = segmill(source, "retrain", "--workspace", str(workspace), *words)
        refused = re.findall(r"unknown key ([\w.-]+)", run.stdout + run.stderr)
        older = [name for key in refused if (name := key.rpartition(".")[2]) in FORMER]
        if run.returncode == 0 or not older:
            break
        for name in older:
            settings = [re.sub(rf"\b{name}\b", FORMER[name], setting) for setting in settings]
    if run.returncode:
        raise SystemExit(f"retrain ended with exit code {run.returncode}: {run.stdout}{run.stderr}")


def differences(one: Path, other: Path) -> list[str]:
    """Return a line for everything of two trained workspaces that is not the same."""
    folders = [workspace / "models" / "members" for workspace in (one, other)]
    names = [sorted(path.name for path in folder.iterdir() if path.is_dir()) for folder in folders]
    if names[0] != names[1]:
        return [f"members are {', '.join(names[0])} and {', '.join(names[1])}"]
    lines = []
    for name in names[0]:
        mine, theirs = (folder / name for folder in folders)
        if (mine / "curves.csv").read_bytes() != (theirs / "curves.csv").read_bytes():
            lines.append(f"{name}: curves.csv differs:\n{_beside(mine / 'curves.csv', theirs / 'curves.csv')}")
        lines += [f"{name}: {line}" for line in _tensors(mine, theirs)]
    mious = [json.loads((each / "reports" / "metrics.json").read_text())["ensemble"]["miou"] for each in (one, other)]
    if mious[0] != mious[1]:
        lines.append(f"ensemble: test mIoU is {mious[0]} and {mious[1]}")
    return lines


def _tensors(one: Path, other: Path) -> list[str]:
    mine, theirs = (load_file(folder / "weights.safetensors") for folder in (one, other))
    if mine.keys() != theirs.keys():
        return [f"weights hold other tensors: {', '.join(sorted(mine.keys() ^ theirs.keys()))}"]
    unequal = [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()]
    if not unequal:
        return []
    most = max(float(np.abs(mine[name].astype(np.float64) - theirs[name]).max()) for name in unequal)
    return [f"{len(unequal)} of {len(mine)} tensors differ, by {most:.3g} at most"]


def _beside(one: Path, other: Path) -> str:
    rows = zip(one.read_text().splitlines(), other.read_text().splitlines(), strict=False)
    return "\n".join(f"    {mine}   |   {theirs}" for mine, theirs in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, metavar="REVISION", help="a git ref or a folder")
    parser.add_argument("--set", action="append", default=[], dest="own", metavar="KEY=VALUE", help="a setting more")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_street(Path(scratch) / "raw", count=60, size=(64, 96), seed=0)
        workspaces = []
        for number, revision in enumerate(arguments.revisions):
            place = Path(scratch) / str(number)
            place.mkdir()
            began = time.monotonic()
            retrain(checkout(revision, place), place / "workspace", Path(scratch) / "raw", [*SETTINGS, *arguments.own])
            print(f"{revision}: trained in {time.monotonic() - began:.0f} s", flush=True)
            workspaces.append(place / "workspace")
        lines = differences(*workspaces)
        trained = sorted(path.name for path in (workspaces[0] / "models" / "members").iterdir() if path.is_dir())
    if lines:
        raise SystemExit("\n".join(lines))
    print(f"equal bit for bit: curves and weights of {', '.join(trained)}, and the ensemble's test mIoU")


if __name__ == "__main__":
    main()
