"""Images per second of a member's training as segmill does it, against a bare PyTorch loop, in one run.

segmill: packed splits, its loader's background thread, autocast as precision "auto" chooses, channels-last,
fused AdamW. Bare: a DataLoader that decodes PNGs, fp32, contiguous tensors, AdamW. The network, the
augmentation, the batches' size and the number of threads are the same; the two take turns, and the medians of
the rounds are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from segmill.data.ingest.builtin import write_street
from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.loading.recipes import resolve_recipe
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.schema.manifest import IGNORE_ID
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from segmill.models.members import MemberSpec, build
from segmill.models.precision import pick_device
from segmill.training.clock import Rank
from segmill.training.loop import train_member
from segmill.training.settings import Settings


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_street(root / "raw", count=options.images, size=(options.height, options.width), seed=0)
        validate_dataset(root / "raw", root / "manifest.parquet", shares=SplitShares(0.2, 0.2, 0))
        info = pack(root / "raw", root / "manifest.parquet", root / "packed")
        augmenter = Augmenter(resolve_recipe(options.recipe), (options.height, options.width), 0, ignore_id=IGNORE_ID)
        split = PackedSplit(root / "packed" / "train")
        rates: dict[str, list[float]] = {"segmill": [], "bare": []}
        for round_number in range(options.rounds + 1):
            measured = {
                "segmill": _segmill(split, augmenter, info.num_classes, options),
                "bare": _bare(root / "raw", split.ids, augmenter, info.num_classes, options),
            }
            if round_number:  # the first is to warm up
                for name, rate in measured.items():
                    rates[name].append(rate)
                print("  ".join(f"{name} {rate:6.1f} images/s" for name, rate in measured.items()), flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{options.backbone} + {options.decoder}, {options.height} x {options.width}, "
        f"batch {options.batch_size}, {options.threads} threads, {pick_device()}: "
        f"segmill {medians['segmill']:.1f} images/s, bare PyTorch {medians['bare']:.1f} images/s, "
        f"ratio {medians['segmill'] / medians['bare']:.2f}"
    )


def _segmill(split: PackedSplit, augmenter: Augmenter, num_classes: int, options: argparse.Namespace) -> float:
    device = pick_device()
    module = build(MemberSpec("speed", options.backbone, options.decoder, num_classes))
    batches = TrainBatches(
        split,
        augmenter,
        batch_size=options.batch_size,
        seed=0,
        loader_workers=options.loader_workers,
        pin_memory=device.type == "cuda",
    )
    settings = Settings(
        member="speed",
        epochs=1,
        lr=1e-3,
        warmup_epochs=0.0,
        num_classes=num_classes,
        ignore_id=IGNORE_ID,
    )
    training = train_member(module, batches, split, settings, device=device, rank=Rank())
    return float(training.curves[0]["images_s"])


class _DecodedEachTime(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, raw_dir: Path, ids: list[str], augmenter: Augmenter):
        self._raw_dir, self._ids, self._augmenter = raw_dir, ids, augmenter

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self._ids[index]
        image, mask = (_pixels(self._raw_dir / kind / f"{sample}.png") for kind in ("images", "masks"))
        image, mask = self._augmenter(image, mask, epoch=0, sample=sample)
        mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
        scaled = (image.astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(scaled.transpose(2, 0, 1).copy()), torch.from_numpy(mask).long()


def _bare(raw_dir: Path, ids: list[str], augmenter: Augmenter, num_classes: int, options: argparse.Namespace) -> float:
    device = pick_device()
    net = build(MemberSpec("speed", options.backbone, options.decoder, num_classes)).net.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=IGNORE_ID)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE_ID)
    loader = DataLoader(
        _DecodedEachTime(raw_dir, ids, augmenter),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.loader_workers,
    )
    began, images = time.perf_counter(), 0
    for image_BCHW, mask_BHW in loader:
        logits_BKHW, truth_BHW = net(image_BCHW.to(device)), mask_BHW.to(device)
        loss = cross_entropy(logits_BKHW, truth_BHW) + dice(logits_BKHW, truth_BHW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(image_BCHW)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - began)


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--decoder", default="fpn")
    parser.add_argument("--height", type=int, default=256, help="pixels")
    parser.add_argument("--width", type=int, default=320, help="pixels")
    parser.add_argument("--images", type=int, default=100, help="images made; six in ten are trained on")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each, after one to warm up")
    parser.add_argument("--recipe", default="driving", help="augmentation preset")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--loader-workers", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
