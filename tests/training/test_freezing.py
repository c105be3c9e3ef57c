from __future__ import annotations

import pytest
import torch

from segmill.training.freezing import freeze, unfrozen_stages
from tests.training.conftest import tiny_module


@pytest.mark.parametrize(
    ("freeze_epochs", "unfreeze_epochs", "by_hand"),
    [(0, 0, [5, 5, 5]), (2, 0, [0, 0, 5, 5]), (1, 4, [0, 1, 2, 3, 4, 5, 5]), (0, 2, [1, 3, 5, 5])],
)
def test_stages_by_hand(freeze_epochs: int, unfreeze_epochs: int, by_hand: list[int]) -> None:
    how = {"freeze_epochs": freeze_epochs, "unfreeze_epochs": unfreeze_epochs}
    assert [unfrozen_stages(5, epoch, **how) for epoch in range(len(by_hand))] == by_hand


def test_what_stands_still_keeps_its_statistics() -> None:
    module = tiny_module()
    encoder, stages = module.encoder, module.encoder_stages()
    module.train()
    assert freeze(encoder, stages, 1)
    assert [parameter.requires_grad for parameter in module.encoder.parameters()] == [False] * 4 + [True] * 4
    assert module.decoder.weight.requires_grad
    module(torch.full((2, 8, 8, 3), 9, dtype=torch.uint8))
    assert module.encoder[1].num_batches_tracked == 0 and module.encoder[4].num_batches_tracked == 1
    assert not freeze(encoder, stages, 1)
    module.train()
    assert freeze(encoder, stages, 2) and module.encoder[1].training
    assert not freeze(encoder, stages, 2)
