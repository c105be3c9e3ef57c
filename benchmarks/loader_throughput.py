"""Images per second that reach training, in one run: decoded from PNG each time, from packed shards, and merely copied.

    python benchmarks/loader_throughput.py [--rounds 5] [--loader-workers 0]

All three deliver the same batches' worth of the same street scenes at the same size. ``decode`` is a plain torch
dataset: OpenCV reads the PNGs (drawn at --source), resizes as prepare does, then augments. ``ours`` is TrainBatches on
the packed split with the same recipe. ``copy`` stacks the packed pixels without augmentation: what memory allows. They
take turns; the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from segmill.data.ingest.builtin import write_street
from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.loading.recipes import resolve_recipe
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.resizing import Resizing
from segmill.data.packing.shards import Preparation
from segmill.data.schema.manifest import IGNORE_ID
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size = (options.size, options.size)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_street(root / "raw", count=options.images, size=tuple(options.source))
        validate_dataset(root / "raw", root / "manifest.parquet", shares=SplitShares(0.2, 0.2, 0))
        pack(root / "raw", root / "manifest.parquet", root / "packed", train=Preparation(Resizing(size)))
        split = PackedSplit(root / "packed" / "train")
        augmenter = Augmenter(resolve_recipe(options.recipe), size, 0, ignore_id=IGNORE_ID)
        decoded = DecodedEachTime(root / "raw", split.ids, augmenter, size)
        np.testing.assert_array_equal(decoded.pixels(0)[0], split.image(0))  # all three start from the same pixels
        np.testing.assert_array_equal(decoded.pixels(0)[1], split.mask(0))
        loader = DataLoader(
            decoded,
            options.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=options.loader_workers,
            persistent_workers=options.loader_workers > 0,
        )
        batches = TrainBatches(
            split, augmenter, batch_size=options.batch_size, seed=0, loader_workers=options.loader_workers
        )
        ways: dict[str, Callable[[int], Iterable[object]]] = {
            "decode": lambda epoch: decoded.at(epoch, loader),
            "ours": batches.epoch,
            "copy": lambda epoch: copies(split, options.batch_size, epoch),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for epoch in range(options.rounds + 1):
            for way, epochs in ways.items():
                rate = images_per_second(epochs(epoch), options.batch_size)
                if epoch:  # the first is to warm up
                    rates[way].append(rate)
            if epoch:
                print("  ".join(f"{way} {rates[way][-1]:8.1f} images/s" for way in ways), flush=True)
    medians = {way: statistics.median(values) for way, values in rates.items()}
    print(
        f"{options.source[0]} x {options.source[1]} PNG to {options.size} x {options.size}, recipe {options.recipe}, "
        f"{options.loader_workers} loader workers; medians of {options.rounds} rounds: "
        f"decode {medians['decode']:.1f}, ours {medians['ours']:.1f}, copy {medians['copy']:.1f} images/s; "
        f"ours / decode {medians['ours'] / medians['decode']:.2f}, ours / copy {medians['ours'] / medians['copy']:.3f}"
    )


class DecodedEachTime(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What one writes without a packed split: read, resize, augment."""

    def __init__(self, raw_dir: Path, ids: list[str], augmenter: Augmenter, size: tuple[int, int]):
        self._raw_dir, self._ids, self._augmenter, self._size, self._epoch = raw_dir, ids, augmenter, size, 0

    def at(self, epoch: int, loader: Iterable[object]) -> Iterable[object]:
        self._epoch = epoch
        return loader

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self._augmenter(*self.pixels(index), epoch=self._epoch, sample=self._ids[index])
        return torch.from_numpy(image), torch.from_numpy(mask)

    def pixels(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image = cv2.imread(str(self._raw_dir / "images" / f"{self._ids[index]}.png"))
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self._raw_dir / "masks" / f"{self._ids[index]}.png"), cv2.IMREAD_UNCHANGED)
        size = self._size[::-1]
        shrinks = self._size[0] <= mask.shape[0] and self._size[1] <= mask.shape[1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def copies(split: PackedSplit, batch_size: int, epoch: int) -> Iterable[object]:
    """Yield the split's batches in a random order, as they lie there."""
    order = np.random.default_rng(epoch).permutation(len(split)).tolist()
    for start in range(0, len(order) - batch_size + 1, batch_size):
        places = order[start : start + batch_size]
        images, masks = ([take(place) for place in places] for take in (split.image, split.mask))
        yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def images_per_second(batches: Iterable[object], batch_size: int) -> float:
    began, count = time.perf_counter(), 0
    for _ in batches:
        count += batch_size
    return count / (time.perf_counter() - began)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="images made; six in ten are trained on")
    parser.add_argument("--source", type=int, nargs=2, default=[512, 512], help="height and width of the PNGs, px")
    parser.add_argument("--size", type=int, default=256, help="side that training sees, px")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each, after one to warm up")
    parser.add_argument("--recipe", default="driving", help="augmentation preset")
    parser.add_argument("--loader-workers", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
