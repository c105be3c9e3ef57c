from __future__ import annotations

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from segmill.training.losses import segmentation_loss


def logits_of(probs_of_class_1: list[float]) -> torch.Tensor:
    """1 x 2 x 1 x W logits whose softmax gives these probabilities to class 1."""
    p = torch.tensor(probs_of_class_1)
    return torch.stack([(1 - p).log(), p.log()]).view(1, 2, 1, -1)


def test_by_hand() -> None:
    # Two pixels: truth 1 with p = 0.8, truth 0 with p = 0.4 for class 1.
    logits, mask = logits_of([0.8, 0.4]), torch.tensor([[[1, 0]]])
    cross_entropy = -(math.log(0.8) + math.log(0.6)) / 2
    # class 1: 2 x 0.8 / (1.2 + 1); class 0: 2 x 0.6 / (0.8 + 1)
    dice = 1 - (1.6 / 2.2 + 1.2 / 1.8) / 2
    loss = segmentation_loss(logits, mask, ignore_id=255, dice_weight=0.5)
    assert loss.item() == pytest.approx(cross_entropy + 0.5 * dice, abs=1e-6)


def test_against_torch_and_smp() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    mask = torch.randint(0, 3, (2, 8, 8), generator=generator)
    mask[0, :2] = 255
    weights = torch.tensor([1.0, 2.0, 0.5])
    cross_entropy = F.cross_entropy(logits, mask, weights, ignore_index=255)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, mask)
    loss = segmentation_loss(logits, mask, ignore_id=255, class_weights=weights, dice_weight=0.7)
    assert loss.item() == pytest.approx((cross_entropy + 0.7 * dice).item(), abs=1e-5)


def test_a_class_the_truth_lacks_is_left_out_of_dice() -> None:
    # All truth is class 0, so only class 0 counts: 2 x 1.5 / (1.5 + 2).
    loss = segmentation_loss(logits_of([0.2, 0.3]), torch.zeros(1, 1, 2), ignore_id=255, dice_weight=1.0)
    cross_entropy = -(math.log(0.8) + math.log(0.7)) / 2
    assert loss.item() == pytest.approx(cross_entropy + 1 - 3.0 / 3.5, abs=1e-6)


def test_ignored_pixels_pull_on_nothing() -> None:
    logits = logits_of([0.2, 0.9]).requires_grad_()
    mask = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    segmentation_loss(logits, mask, ignore_id=255, dice_weight=1.0).backward()
    assert logits.grad is not None
    assert not logits.grad[..., 1].any()
    assert logits.grad[..., 0].abs().min() > 0


def test_nothing_labelled_costs_nothing() -> None:
    logits = logits_of([0.2, 0.9]).requires_grad_()
    loss = segmentation_loss(logits, torch.full((1, 1, 2), 255), ignore_id=255, dice_weight=1.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 2, 256, 256, dtype=torch.bfloat16)
    loss = segmentation_loss(logits, torch.ones(1, 256, 256), ignore_id=255, dice_weight=0.0)
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
