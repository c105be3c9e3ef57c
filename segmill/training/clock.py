"""The progress of a training, by batches or by its time budget, its speed and the time left."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import distributed

AGREE_EVERY_S = 5.0
AGREE_EVERY_STEPS = 50


@dataclass(frozen=True)
class Rank:
    """This process among those that train the member together."""

    index: int = 0
    count: int = 1


class Clock:
    """Counts batches and seconds of a member's training, over all of its processes.

    ``progress`` is the share that is done: of all batches or, with a budget, of its time, whichever is more. Where
    ranks train together, all of them have rank 0's figure: it is broadcast every few seconds, and in between
    the share is extrapolated. So nothing waits for the device at every step.

    Args:
        total_steps: batches of all epochs.
        max_minutes: the time budget; None has none.
        steps_done: batches of earlier processes.
        seconds: what these took.
        rank, device: whose clock it is, and where its ranks' group sends from.
    """

    def __init__(
        self,
        total_steps: int,
        max_minutes: float | None,
        *,
        steps_done: int,
        seconds: float,
        rank: Rank,
        device: torch.device,
    ):
        self._total = total_steps
        self._budget_s = max_minutes and 60 * max_minutes
        self._earlier_s, self._first = seconds, steps_done
        self._rank, self._device = rank, device
        self._began = self._epoch_began = time.perf_counter()
        self._images = 0
        self._rise = 0.0
        self._silent = 0  # steps until the next broadcast of rank 0
        self.steps_done = steps_done
        self.progress = self._share()

    @property
    def over(self) -> bool:
        """Whether the budget, or the last batch, is used up."""
        return self.progress >= 1

    @property
    def seconds(self) -> float:
        """Seconds that the member was trained and validated, starts of processes not counted."""
        return self._earlier_s + time.perf_counter() - self._began

    @property
    def epoch_seconds(self) -> float:
        return time.perf_counter() - self._epoch_began

    @property
    def images_s(self) -> float:
        """Images per second since the epoch began, over all ranks."""
        return self._images / max(self.epoch_seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Seconds until the end at the pace so far, and no more than the budget leaves."""
        pace_s = self.seconds / max(self.steps_done, 1)
        left = pace_s * (self._total - self.steps_done)
        return left if self._budget_s is None else max(0.0, min(left, self._budget_s - self.seconds))

    def start_epoch(self) -> None:
        self._epoch_began = time.perf_counter()
        self._images = 0
        self._silent = 0

    def tick(self, images: int) -> None:
        """Count one more batch, of ``images`` over all ranks; every rank must come here equally often."""
        self._images += images
        self.steps_done += 1
        if self._budget_s is None or self._rank.count == 1:
            self.progress = self._share()
        elif self._silent:
            self._silent -= 1
            self.progress += self._rise
        else:
            self._receive_from_rank_0()

    def _share(self) -> float:
        by_steps = self.steps_done / self._total
        return by_steps if self._budget_s is None else max(by_steps, self.seconds / self._budget_s)

    def _receive_from_rank_0(self) -> None:
        pace_s = (time.perf_counter() - self._began) / max(self.steps_done - self._first, 1)
        share = self._share()
        rise = max(1 / self._total, pace_s / (self._budget_s or 1))
        # Near the end it broadcasts at every step, so that no step starts after it.
        silent = min(AGREE_EVERY_STEPS, AGREE_EVERY_S / max(pace_s, 1e-9), max(0.0, (1 - share) / rise - 1))
        said = torch.tensor([share, rise, int(silent)], dtype=torch.float64, device=self._device)
        distributed.broadcast(said, 0)
        self.progress, self._rise, steps = said.tolist()
        self._silent = int(steps)
