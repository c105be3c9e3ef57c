"""What Ray Train sets up between a member's ranks: torch's process group, where there is more than one rank.

Ray's TorchTrainer imports torch in two processes that merely look on, the launching task and the controller;
leaving that out starts a member 5 s sooner on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    from ray.train._internal.base_worker_group import BaseWorkerGroup


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

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: RanksConfig) -> None:
        if len(worker_group) > 1:
            from ray.train.torch import TorchConfig

            config = TorchConfig(backend="nccl" if backend_config.gpu else "gloo")
            config.backend_cls().on_start(worker_group, config)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: RanksConfig) -> None:
        if len(worker_group) > 1:
            from ray.train.torch import TorchConfig

            TorchConfig().backend_cls().on_shutdown(worker_group, TorchConfig())
