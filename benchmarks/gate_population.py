"""A made-up population of test images and of models, for the simulations of the gate: skewed, correlated, rare classes.

Groups differ in their number of images, in which classes they hold, in the size of these and in difficulty; images of a
group are alike. Two models share the difficulty and differ by class in each group and each image, by standard normal
deviations that a maker of models may choose among. Models with independent deviations are equally good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmill.promotion.paired import PairedOverlaps

Array = NDArray[np.float64]
# Share of the pixels, share of the groups that hold it, and share of wrong pixels, of 11 classes as in street scenes.
SHARES = np.array([0.30, 0.24, 0.17, 0.10, 0.07, 0.05, 0.03, 0.015, 0.01, 0.007, 0.003])
HELD_BY = np.array([1.0, 1.0, 1.0, 1.0, 0.95, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5])
WRONG = np.array([0.03, 0.04, 0.06, 0.08, 0.10, 0.14, 0.18, 0.22, 0.26, 0.30, 0.34])
CLASSES = len(SHARES)
NAMES = [f"class {number}" for number in range(CLASSES)]
RARE = 9
# Standard deviations: of the logarithm of a group's images, of class sizes by group and image; of the logit of the
# share of wrong pixels by group and image, for all models and for each model on its own.
IMAGES, SIZE_BY_GROUP, SIZE_BY_IMAGE = 0.7, 0.7, 0.5
HARD_BY_GROUP, HARD_BY_IMAGE = 0.4, 0.4
OWN_BY_GROUP, OWN_BY_IMAGE = 0.18, 0.5


@dataclass(frozen=True)
class TestSet:
    """N images of G groups, sorted by group: pixels and difficulty by class (N x K), and where each group begins."""

    pixels_NK: Array
    logit_NK: Array
    starts_G: NDArray[np.int64]

    @property
    def groups(self) -> int:
        return len(self.starts_G)

    def group_of_image(self) -> NDArray[np.int64]:
        sizes = np.diff([*self.starts_G, len(self.pixels_NK)])
        return np.repeat(np.arange(self.groups), sizes)

    def part(self, first: int, last: int) -> TestSet:
        """Return the groups from ``first`` up to ``last``."""
        begin = self.starts_G[first]
        end = self.starts_G[last] if last < self.groups else len(self.pixels_NK)
        return TestSet(self.pixels_NK[begin:end], self.logit_NK[begin:end], self.starts_G[first:last] - begin)


def draw_test_set(random: np.random.Generator, groups: int, images: int) -> TestSet:
    """Draw ``images`` images in ``groups`` groups; each has one at least."""
    weight = random.lognormal(0, IMAGES, groups)
    sizes = 1 + random.multinomial(images - groups, weight / weight.sum())
    of_image = np.repeat(np.arange(groups), sizes)
    held_GK = random.random((groups, CLASSES)) < HELD_BY
    held_NK = held_GK[of_image] & (random.random((images, CLASSES)) < np.sqrt(HELD_BY))
    size_NK = random.lognormal(0, SIZE_BY_GROUP, (groups, CLASSES))[of_image]
    size_NK = size_NK * random.lognormal(0, SIZE_BY_IMAGE, (images, CLASSES))
    pixels_NK = np.where(held_NK, 40_000 * SHARES / HELD_BY * size_NK, 0.0)
    hard_NK = HARD_BY_GROUP * random.normal(size=(groups, CLASSES))[of_image]
    hard_NK = hard_NK + HARD_BY_IMAGE * random.normal(size=(images, CLASSES))
    return TestSet(pixels_NK, np.log(WRONG / (1 - WRONG)) + hard_NK, np.concatenate([[0], np.cumsum(sizes)[:-1]]))


def draw_models(random: np.random.Generator, test: TestSet, count: int) -> Array:
    """Draw what is each model's own on the images, count x N x K: a maker may mix models by adding these."""
    by_group = OWN_BY_GROUP * random.normal(size=(count, test.groups, CLASSES))[:, test.group_of_image()]
    return by_group + OWN_BY_IMAGE * random.normal(size=(count, *test.pixels_NK.shape))


def overlaps(test: TestSet, own_MNK: Array, better: Array | float = 0.0) -> tuple[Array, Array]:
    """Return intersections and unions by group, M x G x K each, of models whose logit of wrong is lower by ``better``.

    The wrong pixels of a class are taken for the other classes of the image in proportion to their sizes.
    """
    wrong_MNK = test.pixels_NK / (1 + np.exp(-(test.logit_NK + own_MNK - better)))
    share_NK = test.pixels_NK / test.pixels_NK.sum(axis=1, keepdims=True)
    spread_MNK = wrong_MNK / (1 - np.minimum(share_NK, 0.99))
    false_MNK = share_NK * (spread_MNK.sum(axis=2, keepdims=True) - spread_MNK)
    both = np.add.reduceat(test.pixels_NK - wrong_MNK, test.starts_G, axis=1)
    return both, np.add.reduceat(test.pixels_NK + false_MNK, test.starts_G, axis=1)


def pair_of(test: TestSet, new: tuple[Array, Array], old: tuple[Array, Array]) -> PairedOverlaps:
    """Return what the gate tests, of one model's ``overlaps`` (G x K each) and another's."""
    return PairedOverlaps(np.add.reduceat(test.pixels_NK, test.starts_G, axis=0), *new, *old)


def miou_of(both_MGK: Array, either_MGK: Array) -> Array:
    """Return the mIoU of M models."""
    found: Array = (both_MGK.sum(axis=1) / np.maximum(either_MGK.sum(axis=1), 1e-9)).mean(axis=-1)
    return found


def better_by(gain: float, only: int | None = None) -> Array:
    """Return by how much the logit of wrong must be lower for a gain in mIoU over the population; of class ``only``,
    its IoU."""
    random = np.random.default_rng(0)
    test = draw_test_set(random, 400, 4000)
    own = draw_models(random, test, 1)
    classes = np.ones(CLASSES) if only is None else np.eye(CLASSES)[only]

    def score(better: float) -> float:
        both, either = overlaps(test, own, better * classes)
        iou_K = both.sum(axis=(0, 1)) / either.sum(axis=(0, 1))
        return float(iou_K.mean() if only is None else iou_K[only])

    low, high, start = -3.0, 3.0, score(0.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) - start < gain else (low, middle)
    found: Array = high * classes
    return found
