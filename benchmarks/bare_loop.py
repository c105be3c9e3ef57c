"""Images per second of segmill's training loop against a bare PyTorch loop with every option set by hand, in one run.

Both take the same batches, made ahead, in the same order, with the same network, autocast, channels-last, fused
AdamW, cross-entropy plus Dice and gradients of depthwise convolutions. What is compared is the loop: schedule,
watch for losses that are not finite, progress, prefetch. The two take turns, and the medians of the rounds are
compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from segmill.data.loading.batches import Batch
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.data.schema.manifest import IGNORE_ID
from segmill.models.depthwise import quicken_depthwise
from segmill.models.members import MemberSpec, build
from segmill.models.precision import autocast, autocast_dtype, pick_device
from segmill.training.clock import Rank
from segmill.training.loop import train_member
from segmill.training.settings import Settings

CLASSES = 11


class _MadeAhead:
    """Quacks as TrainBatches; its batches lie in memory."""

    def __init__(self, batches: list[Batch]) -> None:
        self.made, self.steps_per_epoch = batches, len(batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        return iter(self.made)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    random = torch.Generator().manual_seed(0)
    size = (options.batch_size, options.height, options.width)
    batches = [
        Batch(
            torch.randint(256, (*size, 3), dtype=torch.uint8, generator=random),
            torch.randint(CLASSES, size, dtype=torch.uint8, generator=random),
        )
        for _ in range(options.steps)
    ]
    rates: dict[str, list[float]] = {"segmill": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        with SplitWriter(Path(folder)) as writer:
            image_HWC = np.zeros((64, 64, 3), np.uint8)
            writer.add(Sample("one", "one", image_HWC, image_HWC[..., 0]))
        val = PackedSplit(Path(folder))
        for round_number in range(options.rounds + 1):
            measured = {"segmill": _segmill(batches, val, options), "bare": _bare(batches, options)}
            if round_number:  # the first is to warm up
                for name, rate in measured.items():
                    rates[name].append(rate)
                print("  ".join(f"{name} {rate:6.2f} images/s" for name, rate in measured.items()), flush=True)
    ours, theirs = (statistics.median(rates[name]) for name in ("segmill", "bare"))
    print(
        f"{options.backbone} + {options.decoder}, {options.height} x {options.width}, batch {options.batch_size}, "
        f"{options.threads} threads, {pick_device()}: segmill {ours:.2f} images/s, bare loop {theirs:.2f} images/s, "
        f"ratio {ours / theirs:.3f}"
    )


def _segmill(batches: list[Batch], val: PackedSplit, options: argparse.Namespace) -> float:
    torch.manual_seed(0)
    module = build(MemberSpec("speed", options.backbone, options.decoder, CLASSES))
    settings = Settings(member="speed", epochs=1, lr=1e-3, warmup_epochs=0.0, num_classes=CLASSES, ignore_id=IGNORE_ID)
    ends: list[float] = []
    train_member(
        module,
        _MadeAhead(batches),  # type: ignore[arg-type]
        val,
        settings,
        device=pick_device(),
        rank=Rank(),
        on_step=lambda step: ends.append(time.perf_counter()),
    )
    return (len(ends) - 1) * options.batch_size / (ends[-1] - ends[0])


def _bare(batches: list[Batch], options: argparse.Namespace) -> float:
    torch.manual_seed(0)
    device = pick_device()
    dtype = autocast_dtype("auto", device)
    module = build(MemberSpec("speed", options.backbone, options.decoder, CLASSES))
    module = module.to(device, memory_format=torch.channels_last).train()
    quicken_depthwise(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    ends = []
    for image_BHWC, mask_BHW, _ in batches:
        with autocast(dtype, device):
            logits_BKHW = module(image_BHWC.to(device, non_blocking=True))["logits"]
        loss = _loss(logits_BKHW.float(), mask_BHW.to(device, non_blocking=True).long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.perf_counter())
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (len(ends) - 1) * options.batch_size / (ends[-1] - ends[0])


def _loss(logits_BKHW: torch.Tensor, mask_BHW: torch.Tensor) -> torch.Tensor:
    log_probs_BKHW = F.log_softmax(logits_BKHW, dim=1)
    probs_BKHW = log_probs_BKHW.exp()
    truth_BKHW = torch.zeros_like(probs_BKHW).scatter_(1, mask_BHW.unsqueeze(1), 1.0)
    overlap_K = (probs_BKHW * truth_BKHW).sum((0, 2, 3))
    size_K = probs_BKHW.sum((0, 2, 3)) + truth_BKHW.sum((0, 2, 3))
    return F.nll_loss(log_probs_BKHW, mask_BHW) + (1 - 2 * overlap_K / size_K).mean()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--decoder", default="fpn")
    parser.add_argument("--height", type=int, default=288, help="pixels")
    parser.add_argument("--width", type=int, default=384, help="pixels")
    parser.add_argument("--steps", type=int, default=8, help="batches of a round")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
