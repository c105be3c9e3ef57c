"""Ray Train as segmill starts it against torchrun with the same training: images/s, and seconds of start and stop.

    python benchmarks/ray_train_speed.py [--rounds 3] [--epochs 4] [--samples 480]

Both train the same member from the same job, in alternating order: the same batches, the same step
(segmill.training.train). Ray's side is segmill.training.distributed.launch on a Ray that is there already, with all
that a member's training does there: progress, checkpoints, the member folder. torchrun's side has a process group and
nothing else. Once with 2 ranks of 1 thread, once with 1 rank of 2 threads. Images/s is the median over the epochs after
the first, by the loop's own clock, which counts steps alone; start is what passes until the first epoch begins, stop
what passes after the last one, both by the same clock.
"""

from __future__ import annotations

import argparse
import csv
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from segmill.alongside import alongside
from segmill.cluster.connection import connect
from segmill.data.ingest.builtin import write_street
from segmill.data.loading.policy import Policy
from segmill.data.packing.pack import pack
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.train_settings import NetworkSettings, TrainSettings
from segmill.training.distributed import launch
from segmill.training.job import TrainData, TrainJob, Workers

SIZE_PX = (96, 96)
LAYOUTS = (Workers(count=2, cpus=1), Workers(count=1, cpus=2))


@dataclass(frozen=True)
class Measured:
    images_s: float
    start_s: float
    stop_s: float


def a_job(root: Path, packed: Path, workers: Workers, epochs: int) -> TrainJob:
    return TrainJob(
        name="m",
        network=NetworkSettings(
            backbone="resnet18", decoder="fpn", weights="none", lr=1e-3, decoder_width=1.0, attention="none",
            context="none", aux_heads={}, head_weights="fixed", keep_heads=False, deep_supervision=0.0,
        ),
        train=TrainSettings(epochs=epochs, batch_size=8, precision="fp32", val_every=epochs),
        data=TrainData(
            packed_dir=packed, extra_dir=None, policy=Policy("own", None, [{"HorizontalFlip": {"p": 0.5}}], ""),
            size_px=SIZE_PX,
        ),
        split=SplitShares(0.2, 0.2, 0),
        data_version="v1",
        workers=workers,
        out_dir=root / "member",
        runs_dir=root / "runs",
        progress_path=root / "progress.json",
        curves_path=root / "curves.csv",
        failure_path=None,
        inputs_hash="0",
    )  # fmt: skip


def by_ray(job: TrainJob) -> None:
    launch.train_until_finished(job)


def by_torchrun(job: TrainJob) -> None:
    job.curves_path.parent.mkdir(parents=True, exist_ok=True)
    kept = job.curves_path.with_name("job.pickle")
    kept.write_bytes(pickle.dumps(job))
    subprocess.run(
        [
            str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", str(job.workers.count),
            __file__, "--rank-of", str(kept),
        ],
        env={**os.environ, "OMP_NUM_THREADS": str(int(job.workers.cpus))},
        check=True,
    )  # fmt: skip


def be_rank(kept: Path) -> None:
    """Be one process of torchrun."""
    import torch
    from torch import distributed

    from segmill.models.curves import write_curves
    from segmill.training.checkpoint import Training
    from segmill.training.clock import Rank
    from segmill.training.train import Callbacks, save, train

    job: TrainJob = pickle.loads(kept.read_bytes())
    distributed.init_process_group("gloo")
    rank = Rank(distributed.get_rank(), distributed.get_world_size())

    def on_epoch(training: Training) -> None:
        if rank.index == 0:
            write_curves(job.curves_path, training.curves)

    trained = train(
        job, rank=rank, device=torch.device("cpu"), resume_from=None, callbacks=Callbacks(on_epoch=on_epoch)
    )
    if rank.index == 0:
        save(trained)
    distributed.destroy_process_group()


def measure(job: TrainJob, how: str) -> Measured:
    """Train ``job`` by ray or by torchrun; an epoch ends when its row is written and began its seconds before."""
    ends: dict[int, float] = {}
    began = time.time()

    def look(over: threading.Event) -> None:
        while not over.wait(0.01):
            if job.curves_path.exists():
                ends.setdefault(len(job.curves_path.read_text().splitlines()) - 1, job.curves_path.stat().st_mtime)

    with alongside(look):
        {"ray": by_ray, "torchrun": by_torchrun}[how](job)
    ended = time.time()
    with job.curves_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = ends.get(1, min(ends.values()))
    return Measured(
        images_s=median(float(row["images_s"]) for row in rows[1:]),
        start_s=first - float(rows[0]["seconds"]) - began,
        stop_s=ended - max(ends.values()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=480, help="60 %% of them are trained on (default: %(default)s)")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        be_rank(args.rank_of)
        return
    with tempfile.TemporaryDirectory() as name, connect("local", 2):
        root = Path(name)
        write_street(root / "street", count=args.samples, size=SIZE_PX, seed=0)
        validate_dataset(root / "street", root / "manifest.parquet", shares=SplitShares(0.2, 0.2, 0))
        pack(root / "street", root / "manifest.parquet", root / "packed")
        print("ranks x threads  by        images/s   start    stop")
        for workers in LAYOUTS:
            found: dict[str, list[Measured]] = {"ray": [], "torchrun": []}
            for number in range(args.rounds):
                for how in ("ray", "torchrun"):
                    place = root / f"{workers.count}-{number}-{how}"
                    one = measure(a_job(place, root / "packed", workers, args.epochs), how)
                    found[how].append(one)
                    layout = f"{workers.count} x {workers.cpus:g}"
                    print(
                        f"{layout:15s}  {how:8s}  {one.images_s:8.1f}  {one.start_s:5.1f}s  {one.stop_s:5.1f}s",
                        flush=True,
                    )
            speed = {how: median(one.images_s for one in ones) for how, ones in found.items()}
            print(
                f"{layout}: Ray Train has {speed['ray'] / speed['torchrun']:.3f} x the images/s of torchrun (medians)"
            )


if __name__ == "__main__":
    main()
