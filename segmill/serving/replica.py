"""A replica of one version: it predicts for the doors, several requests together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmill.serving.answers import Segmented, Wanted
from segmill.serving.batching import Batcher
from segmill.serving.job import ServiceJob
from segmill.serving.model import ModelFacts, load_version

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Asked:
    """One request's images HWC uint8, C = 3."""

    images: list[Pixels]
    wanted: Wanted


class Replica:
    """A replica of one version. It starts only where the version is what was signed and proves itself."""

    def __init__(self, job: ServiceJob, version: str) -> None:
        self._job, self._version = job, version
        self._batcher = Batcher(self._load, job.batch)

    async def facts(self) -> ModelFacts:
        return self._model.facts

    async def segment(self, asked: Asked) -> list[Segmented]:
        """Segment the images of a request, together with those of others that wait."""
        return await self._batcher.ask(asked)

    def _load(self) -> Callable[[Sequence[Asked]], list[list[Segmented]]]:
        import torch

        if self._job.cpus >= 1:
            torch.set_num_threads(int(self._job.cpus))
        job = self._job
        self._model = load_version(job.mlflow(), job.model, self._version, job.trusted, engine=job.engine)
        return self._segment

    def _segment(self, asked: Sequence[Asked]) -> list[list[Segmented]]:
        images = [image for one in asked for image in one.images]
        found = iter(self._model.segment(images, [one.wanted for one in asked for _ in one.images]))
        return [[next(found) for _ in one.images] for one in asked]
