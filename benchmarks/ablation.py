"""What each technique gives on CamVid val, at a reduced size and budget: one change at a time, several seeds.

DATA is the SegNet copy of CamVid (see camvid.py). Every network trains for the same --epochs on windows of 144 x 192 px
of frames of 180 x 240 px; a member is that of its best validation run, as always. With a change, the seed decides
the same weights, order and transforms as without, so gains are taken seed by seed. What a technique costs in time is
said beside it and not taken off. Nothing is drawn from the clock: a second call gives the same figures, on as many
processes of one thread as there are cores. Results go to --folder as they come; an interrupted call resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from camvid import MEMBERS, RECIPE, make_workspace, run_stage

from segmill.data.ingest.formats.camvid import CLASSES, VOID
from segmill.data.packing.packed import PackedSplit
from segmill.params import parse_params, read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace

SIZE = ["prepare.size_px=[180, 240]", "train.crop_size=[144, 192]", "train.max_minutes=null", "ray.cpus_per_worker=1"]
BASE = "base"
# What is changed of the base member: keys of train and of the member.
CHANGES: dict[str, dict[str, Any]] = {
    BASE: {},
    "no moving average (EMA)": {"ema_decay": 0.0},
    "loss: cross-entropy alone": {"loss": {"ce": 1}},
    "loss: cross-entropy + Lovász": {"loss": {"ce": 1, "lovasz": 1}},
    "loss: focal + Dice": {"loss": {"focal": 1, "dice": 1}},
    "loss: cross-entropy + Dice + boundary": {"loss": {"ce": 1, "dice": 1, "boundary": 0.1}},
    "no class weights": {"class_weights": "none"},
    "OHEM, the hardest quarter": {"ohem": 0.25},
    "attention: SE": {"attention": "se"},
    "attention: scSE": {"attention": "scse"},
    "attention: CBAM": {"attention": "cbam"},
    "context: non-local": {"context": "nonlocal"},
    "recurrent context: GRU": {"context": "gru"},
    "head: presence": {"aux_heads": {"presence": 0.2}},
    "head: boundary": {"aux_heads": {"boundary": 0.2}},
    "head: distance": {"aux_heads": {"distance": 0.2}},
    "three heads, weights learned": {
        "aux_heads": {"presence": 0.2, "boundary": 0.2, "distance": 0.2},
        "head_weights": "learned",
    },
    "deep supervision": {"deep_supervision": 0.4},
    "SGD with Nesterov momentum": {"optimizer": "sgd", "lr": 0.03},
    "NAdam, decoupled decay": {"optimizer": "nadam"},
    "Muon": {"optimizer": "muon"},
    "random weights at the start": {"weights": "none"},
}
SVM = "SVM member, alone"
WITH_SVM = "SVM member beside the base, weights chosen on val"
SVM_MEMBER = {
    "kind": "svm",
    "features": ["colour", "texture", "spatial", "cnn"],
    "backbone": MEMBERS["lite0-fpn"]["backbone"],
    "weights": MEMBERS["lite0-fpn"]["weights"],
}


def main() -> None:
    options = _options()
    workspace = Workspace(options.folder.resolve() / "ws")
    if not (workspace.augmented / "recipe.json").is_file():
        make_workspace(workspace.root, options.data)
        set_params(workspace.params, [*RECIPE, *SIZE])
        for stage in ("fingerprint", "validate", "prepare", "augment"):
            run_stage(workspace, stage)
    done = _read(options)
    jobs = [
        (change, seed)
        for seed in options.seeds
        for change in (*CHANGES, SVM)
        if (not options.only or change in {BASE, *options.only}) and _key(options, change, seed) not in done
    ]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        pending = [pool.submit(_run, workspace, change, seed, options.epochs) for change, seed in jobs]
        for number, future in enumerate(as_completed(pending), start=1):
            change, seed, facts = future.result()
            done[_key(options, change, seed)] = facts
            _results(options).write_text(json.dumps(done, indent=1))
            print(
                f"{number} of {len(jobs)}: {change}, seed {seed}: {facts['miou']:.4f}, {facts['cpu_s']:.0f} CPU s",
                flush=True,
            )
    for seed in options.seeds:
        key = _key(options, WITH_SVM, seed)
        if key not in done and _key(options, SVM, seed) in done:
            trained = [done[_key(options, change, seed)]["cpu_s"] for change in (BASE, SVM)]
            done[key] = _together(workspace, seed) | {"cpu_s": sum(trained)}
            _results(options).write_text(json.dumps(done, indent=1))
    _say(options, done)


def _run(workspace: Workspace, change: str, seed: int, epochs: int) -> tuple[str, int, dict[str, float]]:
    """Train one member on one thread."""
    import torch

    from segmill.training import train
    from segmill.training.clock import Rank
    from segmill.training.svm import fitting
    from tasks.finetune import svm_job, train_job

    torch.set_num_threads(1)
    name = f"{'svm' if change == SVM else 'member'}-{seed}"
    if change == SVM:
        member = {**SVM_MEMBER, "seed": seed}
    else:
        member = {**MEMBERS["lite0-fpn"], "epochs": epochs, "val_every": 2, "seed": seed, **CHANGES[change]}
    values = read_params(workspace.params).model_dump() | {"members": {name: member}}
    params = parse_params(values, "benchmarks/ablation.py")
    out_dir = workspace.members / name
    out_dir.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    if change == SVM:
        miou = fitting.fit_svm(svm_job(workspace, params, name, out_dir))["val_miou"]
        return change, seed, {"miou": miou, "cpu_s": time.process_time() - began}
    job = train_job(workspace, params, name, out_dir)
    trained = train.train(job, rank=Rank(), device=torch.device("cpu"), resume_from=None, callbacks=train.Callbacks())
    facts = {"miou": trained.training.best_miou, "cpu_s": time.process_time() - began}
    if change == BASE:
        train.save(trained)
    return change, seed, facts


def _together(workspace: Workspace, seed: int) -> dict[str, float]:
    """Return the val mIoU of the base member and the SVM, mixed as the ensemble stage would."""
    from segmill.ensembling.select import choose_weights, gather_evidence
    from segmill.models.loading import load_member

    members = {name: load_member(workspace.members / f"{name}-{seed}") for name in ("member", "svm")}
    val = PackedSplit(workspace.packed / "val")
    evidence = gather_evidence(members, val, num_classes=len(CLASSES), ignore_id=VOID, tta_hflip=False)
    weights = choose_weights(evidence)
    return {"miou": evidence.miou(weights), "svm_weight": float(weights[1])}


def _say(options: argparse.Namespace, done: dict[str, Any]) -> None:
    """Print the table, in Markdown."""

    def of(change: str, what: str) -> dict[int, float]:
        found = {seed: done.get(_key(options, change, seed)) for seed in options.seeds}
        return {seed: facts[what] for seed, facts in found.items() if facts}

    base, base_s = of(BASE, "miou"), of(BASE, "cpu_s")
    print(f"\nval mIoU in points, {options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}")
    print(
        "| change | mean | least .. most | gain by seed | mean gain | CPU time |\n| --- | --- | --- | --- | --- | --- |"
    )
    for change in (*CHANGES, SVM, WITH_SVM):
        mious, cpu_s = of(change, "miou"), of(change, "cpu_s")
        if not mious:
            continue
        gains = [100 * (mious[seed] - base[seed]) for seed in mious]
        print(
            f"| {change} | {100 * statistics.mean(mious.values()):.1f} "
            f"| {100 * min(mious.values()):.1f} .. {100 * max(mious.values()):.1f} "
            f"| {', '.join(f'{gain:+.1f}' for gain in gains)} | {statistics.mean(gains):+.1f} "
            f"| {statistics.median(cpu_s[seed] / base_s[seed] for seed in cpu_s):.2f} x |"
        )


def _key(options: argparse.Namespace, change: str, seed: int) -> str:
    return f"{change}; seed {seed}; {options.epochs} epochs"


def _results(options: argparse.Namespace) -> Path:
    return options.folder / "results.json"


def _read(options: argparse.Namespace) -> dict[str, Any]:
    return json.loads(_results(options).read_text()) if _results(options).is_file() else {}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train/ trainannot/ val/ valannot/")
    parser.add_argument("--folder", type=Path, required=True, help="where workspace and results are kept")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*CHANGES, SVM], help="these changes alone, and the base")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args()


if __name__ == "__main__":
    main()
