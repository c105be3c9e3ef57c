"""Pixels sampled from a packed split for the classical member: few of many images, each with its features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmill.data.packing.packed import PackedSplit
from segmill.enhancement import enhance
from segmill.models.svm.features import FrozenBackbone, pixel_features

Channels = dict[str, tuple[int, ...]]

# Fewer pixels of an image are not worth computing all its features.
LEAST_PER_IMAGE = 256
HELD_OUT = 0.2
# Correlation from which on a channel says what an earlier one said: grey images have one brightness, not five.
COPY = 0.999


@dataclass(frozen=True)
class Pixels:
    """Pixels of a split: features_PC float32, class labels_P, and the image_P that each is from.

    ``weights_P`` average 1: with them a sample counts as the whole split does, whose rare classes it favours.
    """

    features_PC: Tensor
    labels_P: NDArray[np.int64]
    image_P: NDArray[np.int64]
    weights_P: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels_P)

    def where(self, chosen_P: NDArray[np.bool_]) -> Pixels:
        """Return the pixels that a mask chooses."""
        weights_P = self.weights_P[chosen_P]
        return Pixels(
            self.features_PC[torch.from_numpy(chosen_P)],
            self.labels_P[chosen_P],
            self.image_P[chosen_P],
            weights_P / weights_P.mean(),
        )

    def columns(self, numbers: Sequence[int]) -> Pixels:
        """Return them with these features only."""
        return replace(self, features_PC=self.features_PC[:, list(numbers)])

    def some(self, count: int, seed: int) -> Pixels:
        """Return ``count`` of them, drawn evenly, or all where there are no more."""
        if count >= len(self):
            return self
        chosen_P = np.zeros(len(self), bool)
        chosen_P[np.random.default_rng(seed).choice(len(self), count, replace=False)] = True
        return self.where(chosen_P)


class Draw:
    """Which pixels of a split to take: of each class as many as the root of its frequency says, from many images.

    ``images`` are so many that each gives LEAST_PER_IMAGE, chosen class by class in turn, so that those that show a
    rare class are among them. ``class_pixels`` are the whole split's.

    Args:
        split: packed; all its masks are read once, here.
        pixels: how many to take, nearly: where a class has fewer than its part, all of it is taken.
        seed: decides images and pixels.
    """

    def __init__(self, split: PackedSplit, pixels: int, *, num_classes: int, seed: int) -> None:
        self._split, self._seed = split, seed
        counts_NK = np.zeros((len(split), num_classes), np.int64)
        for index in range(len(split)):
            counts_NK[index] = np.bincount(split.mask(index).ravel(), minlength=256)[:num_classes]
        self.class_pixels = counts_NK.sum(axis=0)
        self.images = _in_turn(counts_NK > 0, max(num_classes, pixels // LEAST_PER_IMAGE), seed)
        there_K = counts_NK[self.images].sum(axis=0)
        parts_K = np.sqrt(there_K) / max(np.sqrt(there_K).sum(), 1)
        self._share_K = np.minimum(1, pixels * parts_K / np.maximum(there_K, 1))

    def places(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where in the flat image ``index`` the pixels to take lie, and their labels."""
        random = np.random.default_rng([self._seed, index])
        labels = self._split.mask(index).ravel()
        places = []
        for class_id, share in enumerate(self._share_K):
            here = np.flatnonzero(labels == class_id)
            count = min(len(here), int(share * len(here) + random.random()))
            places.append(random.choice(here, count, replace=False, shuffle=False))
        chosen = np.sort(np.concatenate(places))
        return chosen, labels[chosen].astype(np.int64)


def draw_pixels(
    split: PackedSplit,
    draw: Draw,
    channels: Channels,
    cnn: FrozenBackbone | None,
    *,
    grayscale: bool = False,
    clahe: float = 0.0,
    until: float = float("inf"),
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Pixels:
    """Return the pixels of ``draw``, one image's features in memory at a time.

    ``grayscale`` and ``clahe``: as for ``enhance``. Stops at the first image after ``until`` (time.monotonic).
    """
    features, labels, images = [], [], []
    for done, index in enumerate(draw.images.tolist()):
        if done and time.monotonic() > until:
            break
        places, classes = draw.places(index)
        seen_HWC = enhance(np.ascontiguousarray(split.image(index)), grayscale=grayscale, clahe=clahe)
        features_CHW = pixel_features(seen_HWC, channels, cnn)
        features.append(features_CHW.reshape(len(features_CHW), -1)[:, places].T)
        labels.append(classes)
        images.append(np.full(len(places), index))
        on_image(done + 1, len(draw.images))
    labels_P = np.concatenate(labels)
    drawn_K = np.bincount(labels_P, minlength=len(draw.class_pixels))
    weights_P = (draw.class_pixels / np.maximum(drawn_K, 1))[labels_P]
    features_PC = torch.from_numpy(np.concatenate(features))
    return Pixels(features_PC, labels_P, np.concatenate(images), weights_P / weights_P.mean())


def hold_out(pixels: Pixels, groups: Sequence[str], seed: int) -> tuple[Pixels, Pixels]:
    """Return the pixels to fit on, and those of HELD_OUT of the images to calibrate and choose on.

    Whole groups are held out where there is more than one: the images of a group show nearly the same. A class that
    one of the two parts would lack is in both: there is nothing else to know it by.
    """
    of_P = np.array(groups)[pixels.image_P]
    if len(np.unique(of_P)) == 1:
        of_P = pixels.image_P
    names = np.random.default_rng(seed).permutation(np.unique(of_P))
    held_P = np.isin(of_P, names[: int(np.ceil(HELD_OUT * len(names)))]) if len(names) > 1 else of_P != of_P
    labels_P = pixels.labels_P
    lacks_fit, lacks_held = (~np.isin(labels_P, labels_P[part]) for part in (~held_P, held_P))
    return pixels.where(~held_P | lacks_fit), pixels.where(held_P | lacks_held)


def distinct_channels(pixels: Pixels, channels: Channels) -> Channels:
    """Return the channels that vary over the pixels and are no copies, up to scale and offset, of an earlier one."""
    values_PC = pixels.features_PC.double()
    values_PC -= values_PC.mean(0)
    norms_C = values_PC.norm(dim=0)
    varies_C = norms_C > 1e-5 * len(pixels) ** 0.5
    values_PC /= torch.where(varies_C, norms_C, 1.0)
    alike_CC = (values_PC.T @ values_PC).abs() > COPY
    kept: list[int] = []
    result: Channels = {}
    for family, numbers in columns_of(channels).items():
        before = len(kept)
        for number in numbers:
            if varies_C[number] and not alike_CC[number, kept].any():
                kept.append(number)
        if fresh := kept[before:]:
            result[family] = tuple(channels[family][number - numbers[0]] for number in fresh)
    return result


def columns_of(channels: Channels) -> dict[str, list[int]]:
    """Return where each family's channels stand in features of ``channels``."""
    columns, start = {}, 0
    for family, numbers in channels.items():
        columns[family] = list(range(start, start + len(numbers)))
        start += len(numbers)
    return columns


def with_only(pixels: Pixels, channels: Channels, wanted: Channels) -> Pixels:
    """Return pixels of ``channels`` with the features ``wanted`` only."""
    columns = columns_of(channels)
    return pixels.columns(
        [columns[family][channels[family].index(number)] for family in wanted for number in wanted[family]]
    )


def _in_turn(has_NK: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.int64]:
    """Return up to ``most`` indices of images that hold a class: one of each class in turn, the rarest first."""
    order = np.random.default_rng(seed).permutation(len(has_NK))
    order = order[has_NK[order].any(axis=1)]
    if len(order) <= most:
        return order
    queues = [iter(order[has_NK[order, k]].tolist()) for k in np.argsort(has_NK.sum(axis=0), kind="stable")]
    taken: dict[int, None] = {}
    while len(taken) < most:
        for queue in queues:
            fresh = next((index for index in queue if index not in taken), None)
            if fresh is not None and len(taken) < most:
                taken[fresh] = None
    return np.array(list(taken))
