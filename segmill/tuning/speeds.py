"""How fast trainings of this machine were: kept for all workspaces of the user, found for a plan and for the order."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmill import progress
from segmill.train_settings import NetworkSettings
from segmill.tuning.forecast import PastTraining
from segmill.user_cache import user_cache

# What makes a network faster or slower, besides its backbone and decoder, and what each is where nothing is said.
DEFAULTS: dict[str, Any] = {
    "decoder_width": 1.0, "attention": "none", "context": "none", "aux_heads": {}, "deep_supervision": 0.0,
}  # fmt: skip


def speed_folder() -> Path:
    """Return where what was measured on this machine is kept."""
    return user_cache("speed") / (platform.node() or "machine")


def note_training(network: NetworkSettings, trained: PastTraining) -> None:
    """Keep what a training did; a later one of the same network, size and share of the machine replaces it."""
    facts = {"network": _identity(vars(network)), "px": trained.px, "share": round(trained.share, 3)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    speed_folder().mkdir(parents=True, exist_ok=True)
    progress.report(speed_folder() / f"{key}.json", **facts, pixels_s=trained.pixels_s)


def trainings_of(backbone: str, decoder: str, settings: Mapping[str, Any]) -> tuple[PastTraining, ...]:
    """Return what trainings of this network did on this machine; ``settings``: more keys of the member."""
    network = _identity({"backbone": backbone, "decoder": decoder, **settings})
    kept = [progress.read(path) for path in sorted(speed_folder().glob("*.json"))]
    return tuple(
        PastTraining(one["px"], one["share"], one["pixels_s"]) for one in kept if one and one["network"] == network
    )


def note_cost(training: Mapping[str, Any], px: int, seconds: float) -> None:
    """Keep the processor seconds of a training of ``px`` pixels; ``training``: what they depend on, in plain values."""
    path = _cost_path(training)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.report(path, seconds_per_px=seconds / px)


def remembered_cost(training: Mapping[str, Any], px: int) -> float | None:
    """Return the processor seconds of such a training of ``px`` pixels; None where none ran on this machine."""
    kept = progress.read(_cost_path(training))
    return px * float(kept["seconds_per_px"]) if kept else None


def _cost_path(training: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:16]
    return speed_folder() / "costs" / f"{key}.json"


def _identity(member: Mapping[str, Any]) -> dict[str, Any]:
    return {key: member.get(key, DEFAULTS.get(key)) for key in ("backbone", "decoder", *DEFAULTS)}
