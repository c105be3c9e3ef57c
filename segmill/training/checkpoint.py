"""The state of a training between two epochs as one file: written atomically, read without running pickle."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from segmill.errors import InputError
from segmill.files import replacing
from segmill.models.members import MemberModule
from segmill.training.objective import Objective
from segmill.training.optimisation import MovingAverage

FILE = "state.pt"
# Saved as plain values; the rest has a state_dict of its own.
PLAIN = (
    "epochs_done", "steps_done", "over", "seconds", "warmed_at", "best_epoch", "best_miou", "best_weights", "curves",
)  # fmt: skip


@dataclass
class Training:
    """Everything that changes while a member trains; random numbers follow from (seed, epoch) alone.

    ``epochs_done`` counts the epoch that a time budget cut short, ``steps_done`` the batches of all epochs.
    ``over``: nothing is left to train. ``seconds``: on its clock so far. ``warmed_at``: the share of the training
    that was done when the warm-up ended.
    """

    module: MemberModule
    objective: Objective
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None
    epochs_done: int = 0
    steps_done: int = 0
    steps_per_epoch: int = 0
    over: bool = False
    seconds: float = 0.0
    warmed_at: float = 0.0
    best_epoch: int = 0
    best_miou: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)


def save(training: Training, folder: Path) -> None:
    """Write ``training`` to ``folder`` / state.pt, through a temporary file that is renamed."""
    state = {
        "module": training.module.state_dict(),
        "objective": training.objective.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "average": training.average and training.average.state_dict(),
        **{name: getattr(training, name) for name in PLAIN},
    }
    with replacing(folder / FILE) as draft:
        torch.save(state, draft)


def load(training: Training, folder: Path) -> None:
    """Bring ``training`` to the state saved in ``folder``; resuming gives the same bits as an uninterrupted training.

    Raises InputError where the file is damaged or belongs to another model.
    """
    path = folder / FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        training.module.load_state_dict(state["module"])
        training.objective.load_state_dict(state["objective"])
        training.optimizer.load_state_dict(state["optimizer"])
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as reason:
        raise InputError(
            f"checkpoint {path} can't be resumed ({str(reason).splitlines()[0]}); "
            "delete its run folder to start from the beginning"
        ) from None
    training.scaler.load_state_dict(state["scaler"])
    if training.average:
        training.average.load_state_dict(state["average"])
    for name in PLAIN:
        setattr(training, name, state[name])
