"""How fast candidate members train on this machine, and which of them have weights that can be reached."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch

from segmill import progress
from segmill.errors import InputError
from segmill.models.members import MemberSpec, build
from segmill.models.precision import autocast_dtype, pick_device
from segmill.models.weights import resolve
from segmill.training.measure.probe_job import Machine, ProbeCandidate, Probed, ProbeJob
from segmill.training.measure.rehearsal import Rehearsal
from segmill.training.settings import Settings

STEPS = 5
BATCH, LEAST_BATCH = 8, 2  # a step of fewer images would be the optimizer's rather than the network's


def measure(job: ProbeJob) -> tuple[Probed, ...]:
    """Return the candidates that can be built, each with its weights and its speed.

    The speed is that of the quickest of a few training steps on random pixels, after a warm-up: what else runs on the
    machine only makes steps slower. On a slow machine steps are fewer and batches smaller.
    """
    over = time.monotonic() + job.seconds
    count = progress.counter(job.progress_path) if job.progress_path else lambda done, total: None
    found = []
    for place, candidate in enumerate(job.candidates):
        count(place, len(job.candidates))
        weights = _reachable(candidate.starts, candidate.backbone)
        seconds = (over - time.monotonic()) / (len(job.candidates) - place)
        try:
            pace = _pixels_s(candidate, job.num_classes, job.side_px, seconds)
        except InputError:
            continue
        found.append(Probed(candidate, weights, pace))
    count(len(job.candidates), len(job.candidates))
    return tuple(found)


def machine() -> Machine:
    """Return the abilities of this machine."""
    device = pick_device()
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Machine(
        gpu=gpu.name if gpu else None,
        gpu_memory_gib=gpu.total_memory / 2**30 if gpu else 0.0,
        quick_bf16=autocast_dtype("auto", device) is torch.bfloat16,
        load=os.getloadavg()[0] / len(os.sched_getaffinity(0)),
    )


def _reachable(starts: Sequence[str], backbone: str) -> str:
    for spec in starts:
        try:
            resolve(spec, backbone)
        except InputError:
            continue
        return spec
    return "none"


def _pixels_s(candidate: ProbeCandidate, num_classes: int, side_px: int, seconds: float) -> float:
    over = time.monotonic() + seconds
    width = candidate.settings.get("decoder_width", 1.0)
    module = build(MemberSpec(candidate.name, candidate.backbone, candidate.decoder, num_classes, decoder_width=width))
    settings = Settings(member=candidate.name, epochs=1, lr=1e-4, num_classes=num_classes, ignore_id=255)
    rehearsal = Rehearsal(module, settings, size_px=(side_px, side_px), device=pick_device())
    batch, step_s = BATCH, rehearsal.step(BATCH)  # the first step of a shape is slower
    while batch > LEAST_BATCH and time.monotonic() + 2 * step_s > over:
        batch //= 2
        step_s = rehearsal.step(batch)
    taken: list[float] = []
    while len(taken) < STEPS and (not taken or time.monotonic() + min(taken) < over):
        taken.append(rehearsal.step(batch))
    return batch * side_px * side_px / min(taken)
