"""What images and names of a set suggest without a label: colour photos or grey scans, and groups that look wrong."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import DatasetInfo
from segmill.data.schema.samples import list_samples
from segmill.data.storage.images import read_image
from segmill.data.storage.raw_set import RawSample

LOOKED_AT = 24  # images, or pairs of them, evenly chosen
COLOURED = 3.0  # mean difference between channels, of 255: more than a grey image's JPEG has
SERIES = 5  # so many names that run on in numbers are a series
NEIGHBOURS_ALIKE = 0.7  # of how different any two images are (1 - correlation): neighbours below that are no others
THUMBNAIL_PX = 32
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


@dataclass(frozen=True)
class Look:
    """Shares of the images looked at: that have colours, and that a camera's format (JPEG) holds."""

    coloured: float
    jpeg: float


def look_at_images(raw_dir: Path) -> Look:
    """Look at some images of the set. InputError where it can't be read, or an image."""
    samples = _evenly(list_samples(raw_dir)[0])
    coloured = [_spread(read_image(one.image.read(raw_dir))) > COLOURED for one in samples]
    jpeg = [PurePosixPath(one.image.name).suffix.lower() in (".jpg", ".jpeg") for one in samples]
    return Look(sum(coloured) / max(1, len(samples)), sum(jpeg) / max(1, len(samples)))


def doubtful_groups(raw_dir: Path, info: DatasetInfo) -> str | None:
    """Say in a sentence why the groups of the set look wrong, and what to do; None where they do not.

    They do where most samples are groups of their own while their names run on in numbers and neighbours look more
    alike than others: slices of one stack and frames of one recording then go to different splits, and val and test
    promise too much. Numbered photos of different scenes are no such series.

    Raises:
        InputError: the set can't be read, or an image.
    """
    samples = list_samples(raw_dir)[0]
    group_of = {one.id: info.group_of(one.id) for one in samples}
    sizes = Counter(group_of.values())
    series: dict[tuple[str, str], list[tuple[int, RawSample]]] = defaultdict(list)
    for one in samples:
        if sizes[group_of[one.id]] == 1 and (found := _NUMBERED.fullmatch(one.id)):
            series[found[1], found[3]].append((int(found[2]), one))
    runs = [[one for _, one in sorted(run, key=lambda item: item[0])] for run in series.values() if len(run) >= SERIES]
    if 2 * sum(map(len, runs)) < len(samples):
        return None
    near = _different(raw_dir, [pair for run in runs for pair in pairwise(run)])
    every = [one for run in runs for one in run]
    far = _different(raw_dir, list(zip(every, every[len(every) // 2 :], strict=False)))
    if not near < NEIGHBOURS_ALIKE * far:
        return None
    first = max(runs, key=len)
    return (
        f"{len(every):,} of {len(samples):,} samples are groups of their own, but their names run on in numbers "
        f"({first[0].id}, {first[1].id}, ...) and neighbours look alike (1 - correlation {near:.2f}, of all {far:.2f})"
        ", as slices of one stack or frames of one recording do: val and test will promise too much; say what belongs "
        "together with `group` in dataset.yaml, or with `segmill init --group`"
    )


def _evenly(items: Sequence[RawSample]) -> Sequence[RawSample]:
    return items[:: len(items) // LOOKED_AT + 1]


def _spread(image_HWC: NDArray[np.uint8]) -> float:
    """Return how far the channels of a pixel are from each other, on average."""
    return float(np.ptp(image_HWC.astype(np.int16), axis=2).mean())


def _different(raw_dir: Path, pairs: Sequence[tuple[RawSample, RawSample]]) -> float:
    """Return 1 - correlation of the thumbnails of some of the pairs, on average; an image of one value counts not."""
    some = pairs[:: len(pairs) // LOOKED_AT + 1]
    found = [[_thumbnail(raw_dir, one) for one in pair] for pair in some]
    apart = [1 - np.corrcoef(one, other)[0, 1] for one, other in found if one.std() > 0 and other.std() > 0]
    return float(np.mean(apart)) if apart else 1.0


def _thumbnail(raw_dir: Path, sample: RawSample) -> NDArray[np.float32]:
    import cv2

    grey = read_image(sample.image.read(raw_dir)).mean(axis=2).astype(np.float32)
    small: NDArray[np.float32] = cv2.resize(grey, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return small.ravel()
