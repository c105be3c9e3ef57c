"""The job of measuring how fast members train on a machine, and what comes of it. Light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ProbeCandidate:
    """A member to measure: ``settings`` are more keys of it, ``starts`` weights specs, the preferred one first."""

    name: str
    backbone: str
    decoder: str
    lr: float
    settings: Mapping[str, Any]
    starts: tuple[str, ...]


@dataclass(frozen=True)
class ProbeJob:
    """Measure ``candidates`` for ``num_classes`` classes on images of ``side_px`` x ``side_px``.

    ``seconds``: what it may take, besides building each candidate and one step of it. ``progress_path``: counts the
    candidates that are done.
    """

    candidates: tuple[ProbeCandidate, ...]
    num_classes: int
    side_px: int = 256
    seconds: float = 120.0
    progress_path: Path | None = None


@dataclass(frozen=True)
class Probed:
    """A candidate that can be built, the first of its ``starts`` that can be reached, and how fast it trains.

    A step takes ``step_s`` seconds, and one more for every ``pixels_s`` pixels of its images.
    """

    candidate: ProbeCandidate
    weights: str
    pixels_s: float
    step_s: float


@dataclass(frozen=True)
class Machine:
    """``gpu``: its name, None without one. ``quick_bf16``: whether half the bytes are also half the time.

    ``load``: processes that wanted a core in the minute before the measurement, as a share of its cores.
    """

    gpu: str | None
    gpu_memory_gib: float
    quick_bf16: bool
    load: float = 0.0


@dataclass(frozen=True)
class ProbeResult:
    """The candidates that can be built, and the machine that measured them.

    ``tried``: how many of the job's there was time for, the first ones.
    """

    candidates: tuple[Probed, ...]
    machine: Machine
    tried: int


def probe_on_ray(job: ProbeJob) -> ProbeResult:
    """Be what Ray runs."""
    from segmill.training.measure.probe import machine, measure

    abilities = machine()  # first: its load is that of before
    found, tried = measure(job)
    return ProbeResult(found, abilities, tried)
