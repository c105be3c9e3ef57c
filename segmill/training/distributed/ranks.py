"""The process group of a member's ranks, as a Ray Train backend that imports torch in the ranks alone.

Ray's TorchTrainer does the same, but imports torch also in the two processes that start a training and watch it:
2.5 s of a core in each. DataParallelTrainer with a backend is Ray Train's documented way to leave that out
(https://docs.ray.io/en/master/train/api/developer-api.html).
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

from ray.train.backend import Backend, BackendConfig


@dataclass
class RanksConfig(BackendConfig):  # type: ignore[misc]
    """``gpu``: the ranks talk by NCCL instead of gloo."""

    gpu: bool = False

    @property
    def backend_cls(self) -> type[Backend]:
        return _Ranks


class _Ranks(Backend):  # type: ignore[misc]
    # Ranks on one node must see each other's GPUs for NCCL's direct copies.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Sized, backend_config: RanksConfig) -> None:
        if len(worker_group) > 1:
            from ray.train.torch import TorchConfig

            config = TorchConfig(backend="nccl" if backend_config.gpu else "gloo")
            config.backend_cls().on_start(worker_group, config)

    def on_shutdown(self, worker_group: Sized, backend_config: RanksConfig) -> None:
        if len(worker_group) > 1:
            from ray.train.torch import TorchConfig

            TorchConfig().backend_cls().on_shutdown(worker_group, TorchConfig())
