from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from segmill.data.loading.batches import Batch
from segmill.models.members import MemberModule
from segmill.training.loop import begin
from segmill.training.objective import Learner
from segmill.training.settings import Settings
from segmill.training.step import train_step

CPU = torch.device("cpu")
SETTINGS = Settings(
    member="tiny", num_classes=2, ignore_id=255, lr=0.1, optimizer="sgd", momentum=0.0, weight_decay=0.0
)


class Dot(torch.nn.Module):
    """A network of one convolution; its encoder has no stages."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Identity()
        self.decoder = torch.nn.Conv2d(3, 2, 1)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BKHW: torch.Tensor = self.decoder(image_BCHW)
        return logits_BKHW


def parts(settings: Settings = SETTINGS):
    module = MemberModule(Dot(), (0.5,) * 3, (0.25,) * 3).train()
    training = begin(module, [], settings, None, CPU, None)
    return module, training, Learner(module, training.objective, None)


def batch(first: int, last: int) -> Batch:
    random = torch.Generator().manual_seed(1)
    image_BHWC = torch.randint(256, (4, 32, 32, 3), generator=random).to(torch.uint8)
    mask_BHW = torch.randint(2, (4, 32, 32), generator=random).to(torch.uint8)
    return Batch(image_BHWC[first:last], mask_BHW[first:last])


def test_weights_move_with_the_last_micro_batch_by_the_mean_of_the_gradients() -> None:
    settings = replace(SETTINGS, loss={"ce": 1.0})
    whole, halves = parts(settings), parts(settings)
    train_step(whole[1], whole[2], batch(0, 4), max_grad_norm=0)
    before = [parameter.detach().clone() for parameter in halves[0].parameters()]
    train_step(halves[1], halves[2], batch(0, 2), max_grad_norm=0, micro_batches=2, last=False)
    assert all(torch.equal(a, b) for a, b in zip(before, halves[0].parameters(), strict=True))
    train_step(halves[1], halves[2], batch(2, 4), max_grad_norm=0, micro_batches=2)
    for one, two, start in zip(whole[0].parameters(), halves[0].parameters(), before, strict=True):
        assert torch.allclose(one, two, atol=1e-6) and not torch.equal(one, start)
        assert two.grad is None


def test_a_gradient_longer_than_the_norm_is_scaled_down_to_it() -> None:
    module, training, learner = parts()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    train_step(training, learner, batch(0, 4), max_grad_norm=1e-3)
    moved = sum((a - b).square().sum() for a, b in zip(start, module.parameters(), strict=True)).sqrt()
    assert float(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # lr times the norm


def test_the_loss_comes_back_unscaled_and_the_phases_in_their_order() -> None:
    _, training, learner = parts(replace(SETTINGS, ema_decay=0.5))
    assert training.average is not None
    expected = float(learner(*batch(0, 4)))
    phases: list[str] = []
    loss = train_step(training, learner, batch(0, 4), max_grad_norm=0, micro_batches=3, after=phases.append)
    assert float(loss) == expected and not loss.requires_grad
    assert phases == ["backward", "optimizer", "average"]
    train_step(training, learner, batch(0, 4), max_grad_norm=0, micro_batches=3, last=False, after=phases.append)
    assert phases[3:] == ["backward"]
