"""How long two registered versions take per image: asked in turn, so that a busy machine slows both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmill.promotion.score_job import ScoreJob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]
    Ask = Callable[[Images], Images]

WARM_UP = 3  # images that each version predicts before the clock runs
MOST_IMAGES = 40


@dataclass(frozen=True, kw_only=True)
class LatencyJob:
    """Measure two ``versions`` on the images of ``job``, whose own version does not matter."""

    job: ScoreJob
    versions: tuple[str, ...]


def latency_on_ray(job: LatencyJob) -> tuple[list[float], list[float]]:
    """Be what Ray runs; return the milliseconds per image of the first version and of the second."""
    from segmill.promotion.registered import loaded, scored_part

    samples = scored_part(job.job, job.job.splits[0])
    with ExitStack() as models:
        first, second = (
            models.enter_context(loaded(job.job.uri, job.job.model_name, version, job.job.trusted))
            for version in job.versions
        )
        return latency_ms(first, second, [samples.image(index) for index in range(min(MOST_IMAGES, len(samples)))])


def latency_ms(ask_first: Ask, ask_second: Ask, images: Sequence[Images]) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each version per image; which of the two is asked first changes with every image.

    Args:
        ask_first: from image_BHWC uint8 to ids_BHW, as ``registered.loaded`` gives it. The way to its process and back
            counts, which is the same for both.
        ask_second: likewise.
        images: H x W x C each.
    """
    for image_HWC in images[:WARM_UP]:
        ask_first(image_HWC[None])
        ask_second(image_HWC[None])
    taken: tuple[list[float], list[float]] = ([], [])
    for number, image_HWC in enumerate(images):
        turns = [(taken[0], ask_first), (taken[1], ask_second)]
        for times, ask in turns if number % 2 == 0 else reversed(turns):
            began = time.perf_counter()
            ask(image_HWC[None])
            times.append(1000 * (time.perf_counter() - began))
    return taken
