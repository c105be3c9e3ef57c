from __future__ import annotations

import pytest
import torch

from segmill.errors import InputError
from segmill.training.optimisation import MovingAverage, make_optimizer
from tests.training.conftest import Tiny, tiny_module


def make(module: Tiny, kind: str, **how: object) -> torch.optim.Optimizer:
    return make_optimizer(module, module.encoder_stages(), kind, **how)  # type: ignore[arg-type]


def groups_of(optimizer: torch.optim.Optimizer) -> list[tuple[float, float, list[tuple[int, ...]]]]:
    return [
        (group["peak_lr"], group["weight_decay"], [tuple(p.shape) for p in group["params"]])
        for group in optimizer.param_groups
    ]


def test_groups_by_encoder_and_decay() -> None:
    optimizer = make(tiny_module(), "adamw", lr=0.1, encoder_lr_factor=0.5, weight_decay=0.01)
    assert groups_of(optimizer) == [
        (0.05, 0.01, [(4, 3, 3, 3), (4, 4, 1, 1)]),
        (0.05, 0.0, [(4,), (4,), (4,), (4,), (4,), (4,)]),
        (0.1, 0.01, [(2, 4, 1, 1)]),
        (0.1, 0.0, [(2,)]),
    ]


def test_each_stage_at_its_own_pace_and_what_is_further_learned_undecayed() -> None:
    further = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = make(
        tiny_module(), "sgd", lr=0.1, encoder_lr_factor=0.5, layer_decay=0.8, weight_decay=0.01, others=further
    )
    assert sorted(groups_of(optimizer)) == [
        (pytest.approx(0.04), 0.0, [(4,), (4,), (4,)]),
        (pytest.approx(0.04), 0.01, [(4, 3, 3, 3)]),
        (0.05, 0.0, [(4,), (4,), (4,)]),
        (0.05, 0.01, [(4, 4, 1, 1)]),
        (0.1, 0.0, [(2,)]),
        (0.1, 0.0, [(3,)]),
        (0.1, 0.01, [(2, 4, 1, 1)]),
    ]
    assert optimizer.param_groups[-1]["params"][0].shape == (2,)  # the decoder's comes last


def test_nadams_decay_leaves_the_gradient_alone() -> None:
    module = tiny_module()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = make(module, "nadam", lr=0.1, weight_decay=0.01)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, was in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, was * (1 - 0.1 * 0.01 * (parameter.ndim > 1)))


def test_sgd_is_nesterovs() -> None:
    module = tiny_module()
    optimizer = make(module, "sgd", lr=0.1, weight_decay=0.0, momentum=0.9)
    bias = module.decoder.bias
    bias.data.zero_()
    for _ in range(2):
        bias.grad = torch.ones(2)
        optimizer.step()
    # velocity 1, then 1.9; each step is the gradient + 0.9 x velocity: 1.9, then 2.71
    assert bias.tolist() == pytest.approx([-0.1 * (1.9 + 2.71)] * 2)
    assert make(module, "sgd", lr=0.1, weight_decay=0.0, momentum=0.0).param_groups[0]["nesterov"] is False


def test_unknown_optimizers_suggest_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer adanw; did you mean 'adamw'\?"):
        make(tiny_module(), "adanw", lr=0.1, weight_decay=0.0)


def test_moving_average_by_hand() -> None:
    module = tiny_module()
    average = MovingAverage(module, decay=0.15)
    bias, mean = module.decoder.bias, module.encoder[1].running_mean
    with torch.no_grad():
        average.module.decoder.bias.fill_(0)
        bias.fill_(1)
        mean.fill_(1)
    average.update(module)  # decay 1/10 at first: 0 x 0.1 + 1 x 0.9
    assert average.module.decoder.bias.tolist() == pytest.approx([0.9, 0.9])
    assert average.module.encoder[1].running_mean.tolist() == pytest.approx([0.9] * 4)
    average.update(module)  # min(0.15, 2/11) = 0.15: 0.9 x 0.15 + 0.85
    assert average.module.decoder.bias.tolist() == pytest.approx([0.985, 0.985])


def test_moving_average_copies_counters_and_keeps_its_place() -> None:
    module = tiny_module()
    average = MovingAverage(module, decay=0.9)
    module.encoder[1].num_batches_tracked += 5
    average.update(module)
    assert average.module.encoder[1].num_batches_tracked == 5
    other = MovingAverage(tiny_module(), decay=0.9)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    assert other.module.encoder[1].num_batches_tracked == 5


def test_moving_average_has_the_bits_of_its_formula() -> None:
    torch.manual_seed(0)
    module = tiny_module()
    average = MovingAverage(module, decay=0.4)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for update in range(20):
        share = 1 - min(0.4, (1 + update) / (10 + update))
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor))
                expected[name].lerp_(tensor, share)
            else:
                expected[name].copy_(tensor.add_(1))
        average.update(module)
    assert average.updates == 20
    found = average.module.state_dict()
    assert (
        all(torch.equal(found[name], tensor) for name, tensor in expected.items()) and found.keys() == expected.keys()
    )
    assert not any(parameter.requires_grad for parameter in average.module.parameters()) and not average.module.training
