from __future__ import annotations

import math

import pytest
import torch

from segmill.training.auxiliary import border_loss, distance_loss, presence_loss

MASK = torch.tensor([[[0, 0, 1, 255]]], dtype=torch.uint8)


def test_presence_by_hand() -> None:
    logits = torch.tensor([[math.log(4.0), 0.0, math.log(0.25)]])  # p = 0.8, 0.5, 0.2; the third class is not there
    assert presence_loss(logits, MASK, ignore_id=255).item() == pytest.approx(
        -(math.log(0.8) + math.log(0.5) + math.log(0.8)) / 3
    )


def test_borders_weigh_by_what_is_none() -> None:
    # Labelled: none, border, border. Borders are 2 of 3: they weigh 1/3 and the other pixel 2/3.
    logits = torch.tensor([[[[math.log(0.25), math.log(4.0), 0.0, 9.0]]]])
    by_hand = -(2 / 3 * math.log(0.8) + 1 / 3 * math.log(0.8) + 1 / 3 * math.log(0.5)) / 3
    assert border_loss(logits, MASK, ignore_id=255).item() == pytest.approx(by_hand)


def test_distances_by_hand() -> None:
    # Class 0: -1, 0, 1, 2 of at most 1 inside and 2 outside; class 1 has no border; the last pixel is unlabelled.
    distance = torch.tensor([[[[-1.0, 0.0, 1.0, 2.0]], [[0.0, 0.0, 0.0, 0.0]]]]).half()
    output = torch.tensor([[[[-0.5, 0.0, 0.5, -1.0]], [[1.0, 1.0, 1.0, 1.0]]]], requires_grad=True)
    loss = distance_loss(output, distance, MASK, ignore_id=255)
    assert loss.item() == pytest.approx(0.5 * 0.5**2 / 3)
    loss.backward()
    assert output.grad is not None and output.grad.nonzero().tolist() == [[0, 0, 0, 0]]


def test_nothing_labelled_costs_nothing() -> None:
    nothing = torch.full((1, 1, 2), 255)
    assert border_loss(torch.ones(1, 1, 1, 2), nothing, ignore_id=255).item() == 0
    assert distance_loss(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), nothing, ignore_id=255).item() == 0
