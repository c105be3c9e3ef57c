"""The job of profiling a member's training step, and what comes of it. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmill.train_settings import NetworkSettings, TrainSettings
from segmill.training.job import TrainData

if TYPE_CHECKING:
    from segmill.data.packing.packed import PackInfo


@dataclass(frozen=True, kw_only=True)
class ProfileJob:
    """Profile the training of the network member ``name``, from random weights.

    Args:
        data: what it is trained with. made_up: what packed splits would say, for random pixels where nothing is packed.
        threads: of PyTorch, as the member's worker has them. gpus: it holds; 0 takes the CPU.
        share: of the memory, for batch_size auto.
        steps: so many are measured.
    """

    name: str
    network: NetworkSettings
    train: TrainSettings
    data: TrainData
    made_up: PackInfo | None
    threads: int
    gpus: float
    loader_workers: int
    share: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """What a training step costs.

    ``phases``: seconds of each part of a step, the median, see profile.PHASES. ``kinds``: the share of each of
    profile.KINDS in the operators' time. ``step_flop``: a multiply-add is 2, what the network needs however it is
    computed. ``reached_flops``, ``peak_flops``: per second. ``peak_memory_bytes``: of the process, or on the GPU.
    """

    member: str
    device: str
    threads: int
    precision: str
    batch_size: int
    size_px: tuple[int, int]
    made_up: bool
    steps: int
    step_s: float
    images_s: float
    step_flop: int
    phases: dict[str, float]
    kinds: dict[str, float]
    peak_memory_bytes: int
    reached_flops: float
    peak_flops: float
    share_of_peak: float
    advice: str = ""


def profile_on_ray(job: ProfileJob) -> ProfileResult:
    """Be what Ray runs."""
    from segmill.training.measure.profile import profile_member

    return profile_member(job)
