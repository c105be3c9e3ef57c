"""A training between two epochs as one file: written whole or not at all, read without running pickle."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from segmill.errors import InputError
from segmill.models.members import MemberModule
from segmill.training.optimisation import MovingAverage

FILE = "state.pt"


@dataclass
class Training:
    """Everything that moves while a member trains; random numbers follow from (seed, epoch) alone."""

    module: MemberModule
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    epochs_done: int = 0
    best_epoch: int = 0
    best_miou: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)


def save(training: Training, folder: Path) -> None:
    """Write ``training`` to ``folder`` / state.pt, through a temporary file that is renamed."""
    state = {
        "module": training.module.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "scaler": training.scaler.state_dict(),
        "average": training.average and training.average.state_dict(),
        "epochs_done": training.epochs_done,
        "best_epoch": training.best_epoch,
        "best_miou": training.best_miou,
        "best_weights": training.best_weights,
        "curves": training.curves,
    }
    draft = folder / f"{FILE}.tmp"
    torch.save(state, draft)
    os.replace(draft, folder / FILE)


def load(training: Training, folder: Path) -> None:
    """Bring ``training`` to the state saved in ``folder``; going on gives the same bits as never stopping.

    Raises InputError where the file is damaged or belongs to another model.
    """
    path = folder / FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        training.module.load_state_dict(state["module"])
        training.optimizer.load_state_dict(state["optimizer"])
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as reason:
        raise InputError(
            f"checkpoint {path} can't be continued ({str(reason).splitlines()[0]}); "
            "delete its run folder to start afresh"
        ) from None
    training.schedule.load_state_dict(state["schedule"])
    training.scaler.load_state_dict(state["scaler"])
    if training.average:
        training.average.load_state_dict(state["average"])
    training.epochs_done = state["epochs_done"]
    training.best_epoch = state["best_epoch"]
    training.best_miou = state["best_miou"]
    training.best_weights = state["best_weights"]
    training.curves = state["curves"]
