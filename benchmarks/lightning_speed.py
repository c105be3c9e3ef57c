"""Images per second of a training as segmill does it, against the usual one on Lightning, in one run.

Lightning: as the CamVid example of segmentation-models-pytorch trains, written anew from its description: FPN on
ResNeXt-50, PNGs decoded by a dataset, albumentations, fp32, contiguous tensors, normalisation and Dice loss in a
LightningModule, Adam, counts for the IoU at every step. segmill: its packed splits, loader, recipe and loop with
params.yaml's defaults, and the allocator's settings that its workers start with. The network, its start, the batch, the
pixels of an image and the number of threads are the same; the two take turns, each in a process of its own, and the
medians of the rounds are compared. Needs `pip install -c constraints.txt -e .[bench]`.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import lightning
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segmill.cluster.connection import ALLOCATOR
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
    with tempfile.TemporaryDirectory() as folder, _process(options, ALLOCATOR) as ours, _process(options, {}) as theirs:
        root = Path(folder)
        write_street(root / "raw", count=options.images, size=(360, 480), seed=0)
        validate_dataset(root / "raw", root / "manifest.parquet", shares=SplitShares(0.1, 0.1, 0))
        info = pack(root / "raw", root / "manifest.parquet", root / "packed")
        split = PackedSplit(root / "packed" / "train")
        classes = info.num_classes
        rates: dict[str, list[float]] = {"segmill": [], "Lightning": []}
        for round_number in range(options.rounds + 1):
            measured = {
                "segmill": ours.submit(_segmill, split, classes, options).result(),
                "Lightning": theirs.submit(_lightning, root / "raw", split.ids, classes, options).result(),
            }
            if round_number:  # the first is to warm up
                for name, rate in measured.items():
                    rates[name].append(rate)
                print("  ".join(f"{name} {rate:5.2f} images/s" for name, rate in measured.items()), flush=True)
    mine, usual = (statistics.median(rates[name]) for name in ("segmill", "Lightning"))
    print(
        f"{options.backbone} + {options.decoder}, {options.side} x {options.side}, batch {options.batch_size}, "
        f"{options.threads} threads, {pick_device()}: segmill {mine:.2f} images/s, Lightning {usual:.2f} images/s, "
        f"ratio {mine / usual:.2f}"
    )


def _process(options: argparse.Namespace, environment: dict[str, str]) -> ProcessPoolExecutor:
    """Return a process that was started with ``environment``, for all rounds."""
    pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (options.threads,))
    os.environ.update(environment)
    pool.submit(os.getpid).result()
    for name in environment:
        del os.environ[name]
    return pool


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _segmill(split: PackedSplit, num_classes: int, options: argparse.Namespace) -> float:
    device, size = pick_device(), (options.side, options.side)
    module = build(MemberSpec("speed", options.backbone, options.decoder, num_classes))
    augmenter = Augmenter(resolve_recipe("driving"), size, 0, ignore_id=IGNORE_ID)
    batches = TrainBatches(split, augmenter, batch_size=options.batch_size, seed=0, pin_memory=device.type == "cuda")
    settings = Settings(member="speed", epochs=1, lr=2e-4, ema_decay=0.9, num_classes=num_classes, ignore_id=IGNORE_ID)
    seconds: list[float] = []
    began = time.perf_counter()
    train_member(
        module, batches, split, settings, device=device, rank=Rank(),
        on_step=lambda step: seconds.append(time.perf_counter() - began),
    )  # fmt: skip
    # From the end of the first step on: neither starts a process or a loader then.
    return (len(seconds) - 1) * options.batch_size / (seconds[-1] - seconds[0])


class _Png(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, raw_dir: Path, ids: list[str], side: int) -> None:
        self._raw_dir, self._ids = raw_dir, ids
        self._transform = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.ShiftScaleRotate(scale_limit=0.5, rotate_limit=0, shift_limit=0.1, border_mode=0, p=1),
                A.PadIfNeeded(side, side, border_mode=0, p=1),
                A.RandomCrop(side, side, p=1),
                A.GaussNoise(p=0.2),
                A.Perspective(p=0.5),
                A.OneOf([A.CLAHE(p=1), A.RandomBrightnessContrast(p=1), A.RandomGamma(p=1)], p=0.9),
                A.OneOf([A.Sharpen(p=1), A.Blur(blur_limit=3, p=1), A.MotionBlur(blur_limit=3, p=1)], p=0.9),
                A.OneOf([A.RandomBrightnessContrast(p=1), A.HueSaturationValue(p=1)], p=0.9),
            ]
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = f"{self._ids[index]}.png"
        image = cv2.cvtColor(cv2.imread(str(self._raw_dir / "images" / name)), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self._raw_dir / "masks" / name), cv2.IMREAD_GRAYSCALE)
        seen = self._transform(image=image, mask=mask)
        return torch.from_numpy(np.ascontiguousarray(seen["image"].transpose(2, 0, 1))), torch.from_numpy(seen["mask"])


class _Member(lightning.LightningModule):
    def __init__(self, net: torch.nn.Module, num_classes: int, steps: int) -> None:
        super().__init__()
        self.net, self.num_classes, self.steps = net, num_classes, steps
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.loss = smp.losses.DiceLoss("multiclass", from_logits=True, ignore_index=IGNORE_ID)
        self.counts: list[Any] = []
        self.ends: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        image_BCHW, mask_BHW = batch[0].float() / 255, batch[1].long()
        logits_BKHW = self.net((image_BCHW - self.mean) / self.std)
        loss: Tensor = self.loss(logits_BKHW, mask_BHW)
        predicted_BHW = logits_BKHW.softmax(1).argmax(1)
        labelled_BHW = mask_BHW.where(mask_BHW != IGNORE_ID, -1)
        self.counts.append(
            smp.metrics.get_stats(
                predicted_BHW, labelled_BHW, mode="multiclass", num_classes=self.num_classes, ignore_index=-1
            )
        )
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _lightning(raw_dir: Path, ids: list[str], num_classes: int, options: argparse.Namespace) -> float:
    net = build(MemberSpec("speed", options.backbone, options.decoder, num_classes)).net
    loader = DataLoader(
        _Png(raw_dir, ids, options.side),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.loader_workers,
    )
    member = _Member(net, num_classes, len(loader))
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(member, loader)
    return (len(member.ends) - 1) * options.batch_size / (member.ends[-1] - member.ends[0])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnext50_32x4d", help="the example's own where left out")
    parser.add_argument("--decoder", default="fpn")
    parser.add_argument("--side", type=int, default=320, help="height and width of what is trained on, in pixels")
    parser.add_argument("--images", type=int, default=100, help="images made; eight in ten are trained on")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--loader-workers", type=int, default=0, help="of Lightning's loader; segmill has a thread")
    return parser.parse_args()


if __name__ == "__main__":
    main()
