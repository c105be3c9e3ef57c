"""A replica of one version: it predicts for the doors, several requests together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ray import serve

from segmill.serving.answers import Segmented, Wanted
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
        import torch

        if job.cpus >= 1:
            torch.set_num_threads(int(job.cpus))
        self._model = load_version(job.mlflow(), job.model, version, job.trusted)
        self.segment.set_max_batch_size(job.batch)
        self.segment.set_batch_wait_timeout_s(job.batch_wait_s)

    async def facts(self) -> ModelFacts:
        return self._model.facts

    @serve.batch  # type: ignore[untyped-decorator]
    async def segment(self, asked: list[Asked]) -> list[list[Segmented]]:
        """Segment the images of several requests together."""
        images = [image for one in asked for image in one.images]
        wanted = [one.wanted for one in asked for _ in one.images]
        found = iter(await asyncio.to_thread(self._model.segment, images, wanted))
        return [[next(found) for _ in one.images] for one in asked]
