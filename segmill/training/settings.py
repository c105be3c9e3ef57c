"""What a member's training needs to know, as plain values, and where it keeps what it has not finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every value stands in params.yaml under the same name, but ``member`` and what the packed splits know."""

    member: str
    num_classes: int
    ignore_id: int
    grayscale: bool = False
    clahe: float = 0.0
    epochs: int
    lr: float
    seed: int = 0
    max_minutes: float | None = None
    grad_accum_steps: int = 1
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    encoder_lr_factor: float = 1.0
    layer_decay: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    loss: Mapping[str, float] = field(default_factory=lambda: {"ce": 1.0, "dice": 1.0})
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    ohem: float = 1.0
    aux_heads: Mapping[str, float] = field(default_factory=dict)
    head_weights: str = "fixed"
    deep_supervision: float = 0.0
    ema_decay: float = 0.0
    max_grad_norm: float = 0.0
    freeze_epochs: int = 0
    unfreeze_epochs: int = 0
    early_stopping_patience: int = 0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    compile: str = "off"
    val_every: int = 1


def run_folder(args: dict[str, Any]) -> Path:
    """Return where a member's checkpoints lie while it trains."""
    return Path(args["run_dir"]) / f"{args['name']}-{args['inputs_hash']}"
