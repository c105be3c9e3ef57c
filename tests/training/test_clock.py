from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from segmill.training import clock as clock_module
from segmill.training.clock import Clock, Rank


class Now:
    """A time that only moves when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    time = Now()
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=time))
    return time


ALONE = Rank()


def make(max_minutes: float | None = None, rank: Rank = ALONE, steps_done: int = 0, seconds: float = 0.0) -> Clock:
    device = torch.device("cpu")
    return Clock(100, max_minutes, steps_done=steps_done, seconds=seconds, rank=rank, device=device)


def test_without_a_budget_the_batches_count(now: Now) -> None:
    clock = make()
    clock.start_epoch()
    for _ in range(5):
        now.seconds += 2
        clock.tick(8)
    assert (clock.progress, clock.seconds, clock.images_s) == (0.05, 10, 4.0)
    assert clock.seconds_left == 2 * 95


def test_with_a_budget_whichever_is_more(now: Now) -> None:
    clock = make(max_minutes=1)
    now.seconds += 0.3
    clock.tick(8)
    assert clock.progress == 0.01  # a hundredth of the batches, half a hundredth of the time
    now.seconds += 29.7
    clock.tick(8)
    assert (clock.progress, clock.over) == (0.5, False)
    assert clock.seconds_left == 30  # at this pace all batches would take 1,470 s
    now.seconds += 30
    clock.tick(8)
    assert clock.over and clock.seconds_left == 0


def test_it_survives_a_new_process(now: Now) -> None:
    clock = make(max_minutes=1, steps_done=10, seconds=45.0)
    assert clock.progress == 0.75
    now.seconds += 6
    clock.tick(8)
    assert (clock.progress, clock.seconds, clock.steps_done) == (0.85, 51.0, 11)


def test_ranks_hear_rank_0_now_and_then(now: Now, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[float]] = []

    def broadcast(tensor: torch.Tensor, source: int) -> None:
        """Rank 0 says its figures; rank 1, whose clock is fast, is given them."""
        if speaker.steps_done > listener.steps_done:
            said.append(tensor.tolist())
        else:
            tensor.copy_(torch.tensor(said[-1], dtype=torch.float64))

    monkeypatch.setattr(clock_module.distributed, "broadcast", broadcast)
    speaker = make(max_minutes=1, rank=Rank(0, 2))
    listener = make(max_minutes=1, rank=Rank(1, 2), seconds=40.0)
    steps = 0
    while not speaker.over:
        now.seconds += 1.5
        speaker.tick(8)
        listener.tick(8)
        steps += 1
        assert listener.progress == speaker.progress
    # 40 steps of 1.5 s are the budget; it spoke about every fifth second.
    assert listener.over and steps == 40 and 8 <= len(said) <= 14
