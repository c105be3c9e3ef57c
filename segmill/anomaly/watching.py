"""Looks on while a network predicts: its logits' scores and its encoder's features, without a second pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segmill.anomaly.scores import FloatArray


@dataclass
class Watch:
    """What a network said of the images that it predicted since the watch began, in order."""

    _energy: list[Tensor] = field(default_factory=list)
    _max_logit: list[Tensor] = field(default_factory=list)
    _features: list[Tensor] = field(default_factory=list)

    def pixel(self, images: int) -> dict[str, FloatArray]:
        """Return ``energy`` and ``max_logit`` of the first ``images``: B x H x W float32 each."""
        found = {"energy": self._energy, "max_logit": self._max_logit}
        return {name: torch.cat(parts)[:images].cpu().numpy() for name, parts in found.items() if parts}

    def features(self, images: int) -> NDArray[np.float32]:
        """Return the features of the first ``images``: B x D float32."""
        found: NDArray[np.float32] = torch.cat(self._features)[:images].cpu().numpy()
        return found

    def _logits(self, module: nn.Module, given: Any, said: dict[str, Tensor]) -> None:
        logits = said["logits"].float()
        self._energy.append(-logits.logsumexp(dim=1))
        self._max_logit.append(-logits.amax(dim=1))

    def _stages(self, module: nn.Module, given: Any, said: Any) -> None:
        stages = said[0] if isinstance(said, tuple) else said
        moments = []
        for stage in stages:
            if stage.ndim == 4 and stage.shape[1]:
                flat = stage.float().flatten(2)
                moments += [flat.mean(dim=2), flat.std(dim=2, correction=0)]
        self._features.append(torch.cat(moments, dim=1))


@contextmanager
def watching(module: nn.Module, *, logits: bool) -> Iterator[Watch]:
    """Watch a ``MemberModule`` for as long as the block lasts; its logits too where asked for."""
    watch = Watch()
    encoder: nn.Module = module.encoder  # type: ignore[assignment]
    hooks = [encoder.register_forward_hook(watch._stages)]
    if logits:
        hooks.append(module.register_forward_hook(watch._logits))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
