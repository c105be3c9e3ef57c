"""How fast candidate members train on this machine, and which of them have weights that can be reached."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from segmill.errors import InputError
from segmill.models.members import MemberSpec, build
from segmill.models.precision import autocast_dtype, pick_device
from segmill.models.weights import resolve
from segmill.training.measure.rehearsal import Rehearsal
from segmill.training.settings import Settings

WARM_UP, STEPS = 2, 5
BATCH = 8  # a step of fewer images would be the optimizer's rather than the network's


def measure(candidates: list[dict[str, Any]], *, num_classes: int, side_px: int = 256) -> list[dict[str, Any]]:
    """Return each candidate that can be built with ``weights`` (the first that can be reached) and ``pixels_s``.

    By the median of a few training steps on made-up pixels of ``side_px`` x ``side_px``, after a warm-up.

    Args:
        candidates: dicts of name, backbone, decoder, lr, ``settings`` (further keys of the member) and ``starts``:
            weights specs, the wished-for first.
        num_classes: of the data set.
    """
    found = []
    for candidate in candidates:
        weights = _reachable(candidate["starts"], candidate["backbone"])
        try:
            pace = _pixels_s(candidate, num_classes, side_px)
        except InputError:
            continue
        kept = {key: candidate[key] for key in ("name", "backbone", "decoder", "lr", "settings")}
        found.append({**kept, "weights": weights, "pixels_s": pace})
    return found


def machine() -> dict[str, Any]:
    """Return cores' and GPU's abilities: gpu (name or None), gpu_memory_gib, quick_bf16."""
    device = pick_device()
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "gpu": gpu.name if gpu else None,
        "gpu_memory_gib": gpu.total_memory / 2**30 if gpu else 0.0,
        "quick_bf16": autocast_dtype("auto", device) is torch.bfloat16,
    }


def _reachable(starts: list[str], backbone: str) -> str:
    for spec in starts:
        try:
            resolve(spec, backbone)
        except InputError:
            continue
        return spec
    return "none"


def _pixels_s(candidate: dict[str, Any], num_classes: int, side_px: int) -> float:
    width = candidate["settings"].get("decoder_width", 1.0)
    module = build(
        MemberSpec(candidate["name"], candidate["backbone"], candidate["decoder"], num_classes, decoder_width=width)
    )
    settings = Settings(member=candidate["name"], epochs=1, lr=1e-4, num_classes=num_classes, ignore_id=255)
    rehearsal = Rehearsal(module, settings, size_px=(side_px, side_px), channels=3, device=pick_device())
    for _ in range(WARM_UP):
        rehearsal.step(BATCH)
    return BATCH * side_px * side_px / statistics.median(rehearsal.step(BATCH) for _ in range(STEPS))
