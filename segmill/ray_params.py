"""The block ``ray`` of params.yaml: where members are trained, on how much, and when a training counts as stuck."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from segmill.params_block import Block


class RayParams(Block):
    address: str = Field(
        "local", description=("local starts Ray on this machine; or the address of a cluster. RAY_ADDRESS wins.")
    )
    workers: int = Field(1, ge=1, description="Processes that train one member together (DDP).")
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = Field(
        None, description=("CPU cores per process; null shares the cluster's cores evenly between all members.")
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs per process.")
    loader_workers: int = Field(
        0, ge=0, description=("Processes that load and augment samples for one training process; 0 uses a thread.")
    )
    stall_minutes: float | None = Field(
        30.0,
        gt=0,
        description=(
            "A training without a step for so long is ended, with the stack of each thread in the log, and resumed "
            "from its last epoch; null: never."
        ),
    )
