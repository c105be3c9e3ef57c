"""A member's training steps on random pixels and a copy of its network, to measure what they cost."""

from __future__ import annotations

import copy
import time

import torch

from segmill.data.loading.batches import Batch
from segmill.models.depthwise import quicken_depthwise
from segmill.models.members import MemberModule
from segmill.models.precision import autocast_dtype
from segmill.training.loop import begin
from segmill.training.objective import Learner
from segmill.training.settings import Settings
from segmill.training.step import train_step


class Rehearsal:
    """Takes steps as the loop takes them, and leaves ``module`` as it was.

    Args:
        module: copied to ``device``.
        size_px: height and width of the images.
        compiled: whether torch.compile comes first, at the first step.
    """

    def __init__(
        self,
        module: MemberModule,
        settings: Settings,
        *,
        size_px: tuple[int, int],
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self._settings, self._size_px, self._device = settings, size_px, device
        dtype = autocast_dtype(settings.precision, device)
        copied = copy.deepcopy(module).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        quicken_depthwise(copied)
        stages = copied.encoder_stages()
        copied.set_gradient_checkpointing(settings.gradient_checkpointing)
        self._training = begin(copied.train(), stages, settings, None, device, dtype)
        self._learner = Learner(copied, self._training.objective, dtype)
        if compiled:
            self._learner.compile(dynamic=False)

    def step(self, batch_size: int) -> float:
        """Take one step with ``batch_size`` images; return its seconds, the device's included.

        Raises what PyTorch raises, where the memory does not hold it or it can't be compiled.
        """
        settings, training = self._settings, self._training
        height, width = self._size_px
        image_BHWC = torch.randint(256, (batch_size, height, width, 3)).to(self._device, torch.uint8)
        mask_BHW = torch.randint(settings.num_classes, (batch_size, height, width)).to(self._device, torch.uint8)
        distance_BKHW = None
        if training.objective.needs_distances:
            distance_BKHW = torch.zeros(
                batch_size, settings.num_classes, height, width, dtype=torch.float16, device=self._device
            )
        batch = Batch(image_BHWC, mask_BHW, distance_BKHW)
        self._wait()
        began = time.perf_counter()
        try:
            train_step(training, self._learner, batch, max_grad_norm=settings.max_grad_norm)
        finally:
            training.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
