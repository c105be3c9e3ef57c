"""Batches of a packed split: the same for any ranks and workers in training, each sample once in
evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from segmill.data.loading.augmentation import Augmenter
from segmill.data.packing.packed import PackedSplit
from segmill.errors import InputError, SegmillError

Distances = Callable[[NDArray[np.uint8]], NDArray[np.float16]]

_AHEAD = 2  # batches made before they are asked for


class Batch(NamedTuple):
    """Images BHWC uint8 RGB, masks BHW uint8 class ids, and where asked for what ``distances`` made of the masks."""

    image: torch.Tensor
    mask: torch.Tensor
    distance: torch.Tensor | None = None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Return the batch of what ``change`` makes of each tensor."""
        return Batch(change(self.image), change(self.mask), None if self.distance is None else change(self.distance))


class TrainBatches:
    """This rank's part of each global training batch, epoch by epoch.

    The order of samples comes from (seed, epoch) and is cut into global batches of ``batch_size``, of which
    each rank takes an equal, contiguous part; what does not fill a batch is left out that epoch. A split
    smaller than one batch is gone through again, under other augmentation, until one batch is full.

    ``loader_workers``: processes that make batches; 0 makes them in one background thread. ``pin_memory``:
    for faster copies to a GPU. ``distances``: makes an array of each mask, there too. More than eight parameters:
    these five are options of the loader, each apart from the others. InputError where ``batch_size``
    does not divide by ``world_size``, the split is empty, or the images differ in size and the augmenter does not
    make them one.
    """

    def __init__(
        self,
        split: PackedSplit,
        augmenter: Augmenter,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        loader_workers: int = 0,
        pin_memory: bool = False,
        distances: Distances | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"batch_size is {batch_size} with {world_size} workers; it must be a multiple of {world_size}"
            )
        if not len(split):
            raise InputError("the training split holds no samples", "add data or lower split.val and split.test")
        self.steps_per_epoch = max(1, len(split) // batch_size)
        sizes = split.sizes()
        if augmenter.size is None and len(sizes) > 1:
            raise InputError(
                f"the training images differ in size ({sizes[0]} and {sizes[-1]} px, for example); "
                "set prepare.size_px to one height and width"
            )
        self._batches = _Batches(split, augmenter, batch_size, seed, rank, world_size, distances)
        self._loader_workers = loader_workers
        self._pin_memory = pin_memory
        self._steps = _Steps(self.steps_per_epoch)
        self._loader: DataLoader[Batch | SegmillError] | None = None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield ``steps_per_epoch`` batches: images (B/world_size)HWC uint8 and masks (B/world_size)HW
        uint8."""
        if self._loader_workers == 0:
            return _made_ahead(lambda step: self._make(epoch, step), self.steps_per_epoch)
        if self._loader is None:
            self._loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=self._steps,
                num_workers=self._loader_workers,
                pin_memory=self._pin_memory,
                persistent_workers=True,
                # It draws from this as it starts. From torch's own it would take a number of the network's dropout,
                # once in a process: a resumed training would differ, and so would one without loader_workers.
                generator=torch.Generator(),
            )
        self._steps.epoch = epoch
        return _unless_error(self._loader)

    def samples(self, epoch: int) -> NDArray[np.int64]:
        """Return the indices in the split of an epoch's samples, of all ranks together, in their order."""
        return np.resize(self._batches._order_of(epoch), self.steps_per_epoch * self._batches._batch_size)

    def batch(self, epoch: int, step: int) -> tuple[list[str], Batch]:
        """Make one batch (again) and return its samples' ids with it."""
        return self._batches.ids(epoch, step), self._batches.make(epoch, step)

    def _make(self, epoch: int, step: int) -> Batch:
        batch = self._batches.make(epoch, step)
        return batch.each(torch.Tensor.pin_memory) if self._pin_memory else batch


class EvalSamples:
    """Samples ``rank``, ``rank + world_size``, ... of a packed split: every sample on one rank, none
    twice."""

    def __init__(self, split: PackedSplit, *, rank: int = 0, world_size: int = 1) -> None:
        self._split = split
        self.indices = range(rank, len(split), world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield (indices in the split, images BHWC uint8, masks BHW uint8) in order, B <= ``batch_size``.

        Samples keep their own size; a batch ends early where the next sample's size differs.
        """
        pending: list[int] = []
        for index in self.indices:
            if pending and (len(pending) == batch_size or self._split.shape(index) != self._split.shape(pending[0])):
                yield self._stack(pending)
                pending = []
            pending.append(index)
        if pending:
            yield self._stack(pending)

    def _stack(self, indices: list[int]) -> tuple[list[int], NDArray[np.uint8], NDArray[np.uint8]]:
        images = np.stack([self._split.image(index) for index in indices])
        return indices, images, np.stack([self._split.mask(index) for index in indices])


class _Batches(Dataset["Batch | SegmillError"]):
    """Makes the batch of (epoch, step), the same in any process."""

    def __init__(
        self,
        split: PackedSplit,
        augmenter: Augmenter,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        distances: Distances | None,
    ) -> None:
        self._split = split
        self._augmenter = augmenter
        self._batch_size = batch_size
        self._seed = seed
        self._distances = distances
        self._part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __getitem__(self, epoch_step: tuple[int, int]) -> Batch | SegmillError:
        try:
            return self.make(*epoch_step)
        except SegmillError as error:
            return error  # raised by the receiver: from a worker, torch would bury the sentence in a traceback

    def make(self, epoch: int, step: int) -> Batch:
        order = self._order_of(epoch)
        pairs = [self._augmented(order, place, epoch) for place in self._places(step)]
        image, mask = (torch.from_numpy(np.stack(pixels)) for pixels in zip(*pairs, strict=True))
        if self._distances is None:
            return Batch(image, mask)
        return Batch(image, mask, torch.from_numpy(np.stack([self._distances(pixels) for _, pixels in pairs])))

    def ids(self, epoch: int, step: int) -> list[str]:
        order = self._order_of(epoch)
        return [self._split.ids[int(order[place % len(order)])] for place in self._places(step)]

    def _places(self, step: int) -> range:
        return range(step * self._batch_size, (step + 1) * self._batch_size)[self._part]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        """Return the epoch's order, kept from batch to batch: to shuffle 100,000 takes as long as to make one."""
        kept, order = self._order
        if kept != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._split))
            self._order = epoch, order
        return order

    def _augmented(
        self, order: NDArray[np.int64], place: int, epoch: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        lap, place = divmod(place, len(order))
        index = int(order[place])
        sample = self._split.ids[index] + (f"+{lap}" if lap else "")
        return self._augmenter(self._split.image(index), self._split.mask(index), epoch=epoch, sample=sample)


class _Steps(Sampler[Any]):
    """Hands (epoch, step) to the loader's workers; they live on while ``epoch`` changes."""

    def __init__(self, steps: int) -> None:
        self.epoch = 0
        self._steps = steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return iter([(epoch, step) for step in range(self._steps)])

    def __len__(self) -> int:
        return self._steps


def _unless_error(made: Iterable[Batch | SegmillError]) -> Iterator[Batch]:
    for batch in made:
        if isinstance(batch, SegmillError):
            raise batch
        yield batch


def _made_ahead(make: Callable[[int], Batch], steps: int) -> Iterator[Batch]:
    """Yield ``make(0)``, ..., ``make(steps - 1)``; one thread makes the next ones while the caller
    computes."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead: deque[Future[Batch]] = deque()
        for step in range(steps + _AHEAD):
            if step < steps:
                ahead.append(thread.submit(make, step))
            if step >= _AHEAD:
                yield ahead.popleft().result()
