from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from segmill.training.schedule import SCHEDULES, WARMUP_SHARE, lr_factor, set_lr


def factors(kind: str, warmup: int, total: int) -> list[float]:
    return [
        lr_factor(kind, step=step, warmup_steps=warmup, progress=step / total, warmed_at=min(step, warmup) / total)
        for step in range(total + 1)
    ]


def test_cosine_by_hand() -> None:
    # a quarter, a half, three quarters; then half a cosine over four steps
    by_hand = [0.25, 0.5, 0.75, 1.0, 0.853553, 0.5, 0.146447, 0.0]
    assert factors("cosine", 3, 7) == pytest.approx(by_hand, abs=1e-6)


def test_poly_by_hand() -> None:
    assert factors("poly", 1, 5) == pytest.approx([0.5, 1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0.0])


def test_constant_by_hand() -> None:
    assert factors("constant", 2, 5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_onecycle_by_hand() -> None:
    cycle = factors("onecycle", 3, 20)  # no other warm-up
    assert cycle[0] == pytest.approx(0.04) and cycle[3] == pytest.approx(0.52)
    assert cycle[6] == pytest.approx(1.0) and cycle[13] == pytest.approx(0.5)


@pytest.mark.parametrize("kind", sorted(set(SCHEDULES) - {"constant"}))
def test_all_end_at_0(kind: str) -> None:
    assert factors(kind, 3, 20)[-1] == pytest.approx(0.0, abs=1e-12)
    assert lr_factor(kind, step=9, warmup_steps=0, progress=1.2, warmed_at=0.0) == pytest.approx(0.0, abs=1e-12)


def test_by_time_the_fall_begins_where_the_warm_up_ended() -> None:
    # Three of perhaps 1,000 batches took a fifth of the time: half of the rest is over at 0.6.
    assert lr_factor("cosine", step=3, warmup_steps=3, progress=0.2, warmed_at=0.2) == 1.0
    assert lr_factor("cosine", step=9, warmup_steps=3, progress=0.6, warmed_at=0.2) == pytest.approx(0.5)


def test_with_a_time_budget_the_warm_up_takes_a_tenth_of_it_at_most() -> None:
    def factor(progress: float, step: int = 9) -> float:
        warmed_at = min(progress, WARMUP_SHARE)
        return lr_factor("cosine", step=step, warmup_steps=1000, progress=progress, warmed_at=warmed_at, budget=True)

    assert factor(0.05) == pytest.approx(0.5), "half of the tenth, whatever share of an epoch that is"
    assert factor(0.05, step=800) == 801 / 1001, "an epoch that is shorter than the tenth"
    assert factor(0.1) == 1.0 and factor(0.55) == pytest.approx(0.5) and factor(1.0) == pytest.approx(0.0)


def test_warm_up_longer_than_training_still_climbs() -> None:
    assert lr_factor("cosine", step=1, warmup_steps=4, progress=0.5, warmed_at=0.5) == 0.4
    assert lr_factor("cosine", step=4, warmup_steps=4, progress=1.0, warmed_at=1.0) == 0.0


def test_every_group_has_its_own_peak() -> None:
    groups = [{"params": [torch.zeros(1)], "lr": peak, "peak_lr": peak} for peak in (0.05, 0.1)]
    optimizer = SGD(groups)
    assert set_lr(optimizer, 0.5) == 0.05
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.05]
