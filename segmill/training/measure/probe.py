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
BATCH, LEAST_BATCH = 8, 2
BUILDING_S = 30.0  # for building what is measured
SMALL = 4  # the small step has images of this fraction of the side: it is the optimizer's rather than the network's


def measure(job: ProbeJob) -> tuple[tuple[Probed, ...], int]:
    """Return the candidates that can be built, each with its weights and its speed; and how many were tried.

    The speed is that of the quickest of a few training steps on random pixels, large and small ones, after a warm-up:
    what else runs on the machine only makes steps slower. On a slow machine steps are fewer and batches smaller, and
    where building and first steps alone have taken the time twice and BUILDING_S, the rest is not tried.
    """
    over = time.monotonic() + job.seconds
    count = progress.counter(job.progress_path)
    found: list[Probed] = []
    for place, candidate in enumerate(job.candidates):
        if found and time.monotonic() > over + job.seconds + BUILDING_S:
            return tuple(found), place
        count(place, len(job.candidates))
        weights = _reachable(candidate.starts, candidate.backbone)
        seconds = (over - time.monotonic()) / (len(job.candidates) - place)
        try:
            pixels_s, step_s = _speed(candidate, job.num_classes, job.side_px, seconds)
        except InputError:
            continue
        found.append(Probed(candidate, weights, pixels_s, step_s))
    count(len(job.candidates), len(job.candidates))
    return tuple(found), len(job.candidates)


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


def _speed(candidate: ProbeCandidate, num_classes: int, side_px: int, seconds: float) -> tuple[float, float]:
    """Return pixels per second, and the seconds of a step besides, from a large and a small step."""
    over = time.monotonic() + seconds
    width = candidate.settings.get("decoder_width", 1.0)
    module = build(MemberSpec(candidate.name, candidate.backbone, candidate.decoder, num_classes, decoder_width=width))
    settings = Settings(
        member=candidate.name, epochs=1, lr=1e-4, num_classes=num_classes, ignore_id=255, ema_decay=0.99
    )
    small_px = max(32, side_px // SMALL)
    small = Rehearsal(module, settings, size_px=(small_px, small_px), device=pick_device())
    small.step(LEAST_BATCH)
    small_s = _quickest(small, LEAST_BATCH, over)
    rehearsal = Rehearsal(module, settings, size_px=(side_px, side_px), device=pick_device())
    batch, step_s = BATCH, rehearsal.step(BATCH)  # the first step of a shape is slower
    while batch > LEAST_BATCH and time.monotonic() + 2 * step_s > over:
        batch //= 2
        step_s = rehearsal.step(batch)
    large_s = _quickest(rehearsal, batch, over)
    more_px, more_s = batch * side_px**2 - LEAST_BATCH * small_px**2, large_s - small_s
    if more_s <= 0 or more_px <= 0:  # noise, or images of one size
        return batch * side_px**2 / large_s, 0.0
    return more_px / more_s, max(0.0, small_s - LEAST_BATCH * small_px**2 * more_s / more_px)


def _quickest(rehearsal: Rehearsal, batch: int, over: float) -> float:
    """Return the seconds of the quickest of at most STEPS steps, and of at least one, that are done by ``over``."""
    taken: list[float] = []
    while len(taken) < STEPS and (not taken or time.monotonic() + min(taken) < over):
        taken.append(rehearsal.step(batch))
    return min(taken)
