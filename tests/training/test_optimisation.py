from __future__ import annotations

import pytest
import torch

from segmill.training.optimisation import MovingAverage, lr_factor, make_optimizer, make_schedule
from tests.training.conftest import tiny_module


def test_learning_rate_by_hand() -> None:
    factors = [lr_factor(step, warmup_steps=3, total_steps=7) for step in range(8)]
    # a quarter, a half, three quarters; then half a cosine over four steps
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_warm_up_longer_than_training_still_climbs() -> None:
    assert lr_factor(1, warmup_steps=4, total_steps=2) == 0.4


def test_groups_by_encoder_and_decay() -> None:
    module = tiny_module()
    optimizer = make_optimizer(module, lr=0.1, encoder_lr_factor=0.5, weight_decay=0.01)
    groups = [(g["lr"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in optimizer.param_groups]
    assert groups == [
        (0.05, 0.01, [(4, 3, 3, 3)]),
        (0.05, 0.0, [(4,)]),
        (0.1, 0.01, [(2, 4, 1, 1)]),
        (0.1, 0.0, [(4,), (4,), (2,)]),
    ]
    make_schedule(optimizer, warmup_steps=1, total_steps=4)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.025, 0.05, 0.05]


def test_moving_average_by_hand() -> None:
    module = tiny_module()
    average = MovingAverage(module, decay=0.15)
    bias, mean = module.net.decoder.bias, module.net.norm.running_mean
    with torch.no_grad():
        average.module.net.decoder.bias.fill_(0)
        bias.fill_(1)
        mean.fill_(1)
    average.update(module)  # decay 1/10 at first: 0 x 0.1 + 1 x 0.9
    assert average.module.net.decoder.bias.tolist() == pytest.approx([0.9, 0.9])
    assert average.module.net.norm.running_mean.tolist() == pytest.approx([0.9] * 4)
    average.update(module)  # min(0.15, 2/11) = 0.15: 0.9 x 0.15 + 0.85
    assert average.module.net.decoder.bias.tolist() == pytest.approx([0.985, 0.985])


def test_moving_average_copies_counters_and_keeps_its_place() -> None:
    module = tiny_module()
    average = MovingAverage(module, decay=0.9)
    module.net.norm.num_batches_tracked += 5
    average.update(module)
    assert average.module.net.norm.num_batches_tracked == 5
    other = MovingAverage(tiny_module(), decay=0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    assert other.module.net.norm.num_batches_tracked == 5
