"""Evaluation by one process with all cores against one worker per core, in turn: images/s of both and their ratio.

    python benchmarks/evaluation_speed.py [--images 64] [--side 512] [--rounds 3]

Three networks with random weights score random images of 19 classes. Each time is taken in a new local Ray, whose
processes have to import PyTorch first ("cold"), and once more in the same ("warm"), as after the stage ensemble.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmill.cluster.connection import connect
from segmill.cluster.resources import whole_node
from segmill.cluster.work import Running, on_ray, wait
from segmill.data.packing.packed import PackInfo
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.ensembling.predict import FORMAT
from segmill.evaluation.job import EvaluateJob
from segmill.evaluation.scoring import read_counts
from segmill.evaluation.shell import evaluate_on_ray, start_evaluation
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights

CLASSES = 19
MEMBERS = {"lite0-unet": ("tf_efficientnet_lite0", "unet"), "r18-linknet": ("resnet18", "linknet"),
           "mobile-fpn": ("mobilenetv2_050", "fpn")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--side", type=int, default=512, help="height and width of an image in px")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_ensemble(folder / "ensemble")
        _write_split(folder / "packed", options.images, options.side)
        for _ in range(options.rounds):
            for kind, start in (("one process", _as_one), ("workers", start_evaluation)):
                job = EvaluateJob(
                    ensemble_dir=folder / "ensemble", packed_dir=folder / "packed", out_dir=folder / kind, overlays=3
                )
                with connect("local"):
                    for state in ("cold", "warm"):
                        taken.setdefault(f"{kind}, {state}", []).append(_seconds(start, job))
            one, many = (read_counts(folder / kind / "counts.npz") for kind in ("one process", "workers"))
            apart = int(np.abs(one.ensemble - many.ensemble).sum()) // 2
            print({kind: round(seconds[-1], 2) for kind, seconds in taken.items()}, f"{apart} pixels apart", flush=True)
    for kind, seconds in taken.items():
        print(f"{kind:20} {options.images / statistics.median(seconds):7.2f} images/s")
    for state in ("cold", "warm"):
        ratios = [
            one / many for one, many in zip(taken[f"one process, {state}"], taken[f"workers, {state}"], strict=True)
        ]
        print(f"workers against one process, {state}: {statistics.median(ratios):.2f}x")


def _as_one(job: EvaluateJob) -> Running[dict[str, Any]]:
    return on_ray(evaluate_on_ray, job, whole_node())


def _seconds(start: Callable[[EvaluateJob], Running[dict[str, Any]]], job: EvaluateJob) -> float:
    began = time.perf_counter()
    wait(start(job))
    return time.perf_counter() - began


def _write_ensemble(folder: Path) -> None:
    for seed, (name, (backbone, decoder)) in enumerate(MEMBERS.items()):
        torch.manual_seed(seed)
        spec = MemberSpec(name, backbone, decoder, CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3)
        save_member(
            folder / "members" / name, build(spec), spec, weights=Weights("none", None, None), params={},
            data_version="", metrics={}, curves=[{"epoch": 1}],
        )  # fmt: skip
    classes = [{"id": index, "name": str(index), "color": "#000000"} for index in range(CLASSES)]
    facts = {"format": FORMAT, "classes": classes, "weights": dict.fromkeys(MEMBERS, 1 / len(MEMBERS)), "flips": False}
    (folder / "ensemble.json").write_text(json.dumps(facts))


def _write_split(folder: Path, images: int, side: int) -> None:
    rng = np.random.default_rng(0)
    with SplitWriter(folder / "test") as writer:
        for number in range(images):
            image = rng.integers(0, 256, (side, side, 3), np.uint8)
            writer.add(Sample(f"{number:06}", f"g{number}", image, image[..., 0] % CLASSES))
    names = tuple(map(str, range(CLASSES)))
    info = PackInfo(
        name="noise", class_names=names, colors=("#000000",) * CLASSES, ignore_id=255, size=None, mean=(0.5,) * 3,
        std=(0.25,) * 3, class_pixels=(1,) * CLASSES, samples={"test": images},
    )  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(asdict(info)))


if __name__ == "__main__":
    main()
