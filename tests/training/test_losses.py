from __future__ import annotations

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from segmill.errors import InputError
from segmill.training.losses import LOSSES, class_weights, segmentation_loss

CPU = torch.device("cpu")


def logits_of(probs_of_class_1: list[float]) -> torch.Tensor:
    """1 x 2 x 1 x W logits whose softmax gives these probabilities to class 1."""
    p = torch.tensor(probs_of_class_1)
    return torch.stack([(1 - p).log(), p.log()]).view(1, 2, 1, -1)


def loss_of(logits: torch.Tensor, mask: torch.Tensor, **how: object) -> float:
    return segmentation_loss(logits, mask, ignore_id=255, **how).item()  # type: ignore[arg-type]


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits 2 x 3 x 8 x 8 and a mask of three classes, a quarter of one image unlabelled."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    mask = torch.randint(0, 3, (2, 8, 8), generator=generator)
    mask[0, :2] = 255
    return logits, mask


def test_cross_entropy_and_dice_by_hand() -> None:
    # Two pixels: truth 1 with p = 0.8, truth 0 with p = 0.4 for class 1.
    logits, mask = logits_of([0.8, 0.4]), torch.tensor([[[1, 0]]])
    cross_entropy = -(math.log(0.8) + math.log(0.6)) / 2
    # class 1: 2 x 0.8 / (1.2 + 1); class 0: 2 x 0.6 / (0.8 + 1)
    dice = 1 - (1.6 / 2.2 + 1.2 / 1.8) / 2
    assert loss_of(logits, mask, loss={"ce": 1, "dice": 0.5}) == pytest.approx(cross_entropy + 0.5 * dice, abs=1e-6)


def test_focal_by_hand() -> None:
    logits, mask = logits_of([0.8, 0.4]), torch.tensor([[[1, 0]]])
    by_hand = -(0.2**3 * math.log(0.8) + 0.4**3 * math.log(0.6)) / 2
    assert loss_of(logits, mask, loss={"focal": 1}, focal_gamma=3.0) == pytest.approx(by_hand, abs=1e-6)


def test_tversky_by_hand() -> None:
    logits, mask = logits_of([0.8, 0.4]), torch.tensor([[[1, 0]]])
    # class 1: overlap 0.8, false positives 0.4, misses 0.2; class 0: 0.6, 0.2, 0.4
    by_hand = 1 - (0.8 / (0.8 + 0.3 * 0.4 + 0.7 * 0.2) + 0.6 / (0.6 + 0.3 * 0.2 + 0.7 * 0.4)) / 2
    assert loss_of(logits, mask, loss={"tversky": 1}, tversky_alpha=0.3) == pytest.approx(by_hand, abs=1e-6)


def test_lovasz_by_hand() -> None:
    # Three pixels. Class 1: truth 1 1 0, p 0.9 0.3 0.6: errors 0.1 0.7 0.6, sorted 0.7 (missed), 0.6 (too much), 0.1.
    # Jaccard loss after each: 1 - 1/2, 1 - 1/3, 1 - 0/3; the slopes 1/2, 1/6, 1/3.
    class_1 = 0.7 / 2 + 0.6 / 6 + 0.1 / 3
    # Class 0: truth 0 0 1 and the same errors: after each 1 - 1/2, 1 - 0/2, 1 - 0/3; the slopes 1/2, 1/2, 0.
    class_0 = 0.7 / 2 + 0.6 / 2
    loss = loss_of(logits_of([0.9, 0.3, 0.6]), torch.tensor([[[1, 1, 0]]]), loss={"lovasz": 1})
    assert loss == pytest.approx((class_0 + class_1) / 2, abs=1e-6)


def test_boundary_by_hand() -> None:
    logits, mask = logits_of([0.8, 0.4, 0.5]), torch.tensor([[[1, 0, 255]]])
    distance = torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 2.0]]])[None]
    # class 0: 0.2 x 1 + 0.6 x 0; class 1: 0.8 x 0 + 0.4 x 1; over two labelled pixels and two classes
    assert loss_of(logits, mask, loss={"boundary": 2}, distance_BKHW=distance.half()) == pytest.approx(2 * 0.6 / 4)


def test_against_torch_and_smp(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, mask = scene
    weights = torch.tensor([1.0, 2.0, 0.5])
    cross_entropy = F.cross_entropy(logits, mask, weights, ignore_index=255)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, mask)
    loss = loss_of(logits, mask, loss={"ce": 1, "dice": 0.7}, class_weights=weights)
    assert loss == pytest.approx((cross_entropy + 0.7 * dice).item(), abs=1e-5)
    tversky = smp.losses.TverskyLoss("multiclass", ignore_index=255, alpha=0.3, beta=0.7)(logits, mask)
    assert loss_of(logits, mask, loss={"tversky": 1}) == pytest.approx(tversky.item(), abs=1e-5)
    lovasz = smp.losses.LovaszLoss("multiclass", ignore_index=255)(logits, mask)
    assert loss_of(logits, mask, loss={"lovasz": 1}) == pytest.approx(lovasz.item(), abs=1e-5)


def test_focal_of_0_is_cross_entropy(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert loss_of(*scene, loss={"focal": 1}, focal_gamma=0.0) == loss_of(*scene, loss={"ce": 1})


def test_only_the_hardest_pixels_count() -> None:
    # Of four labelled pixels half: p of the truth 0.1 and 0.3. The unlabelled one would be the hardest.
    logits, mask = logits_of([0.1, 0.9, 0.3, 0.8, 0.01]), torch.tensor([[[1, 1, 1, 1, 255]]])
    by_hand = -(math.log(0.1) + math.log(0.3)) / 2
    assert loss_of(logits, mask, loss={"ce": 1}, ohem=0.5) == pytest.approx(by_hand, abs=1e-6)
    assert loss_of(logits, mask, loss={"ce": 1}, ohem=0.01) == pytest.approx(-math.log(0.1), abs=1e-6)


def test_a_class_the_truth_lacks_is_left_out_of_dice() -> None:
    # All truth is class 0, so only class 0 counts: 2 x 1.5 / (1.5 + 2).
    loss = loss_of(logits_of([0.2, 0.3]), torch.zeros(1, 1, 2), loss={"dice": 1})
    assert loss == pytest.approx(1 - 3.0 / 3.5, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ohem", [1.0, 0.5])
def test_ignored_pixels_pull_on_nothing(name: str, ohem: float) -> None:
    logits = logits_of([0.2, 0.9, 0.4]).requires_grad_()
    mask = torch.tensor([[[0, 255, 1]]], dtype=torch.uint8)
    distance = torch.tensor([[[0.0, 1.0, 2.0]], [[2.0, 1.0, 0.0]]])[None]
    segmentation_loss(logits, mask, ignore_id=255, loss={name: 1}, ohem=ohem, distance_BKHW=distance).backward()
    assert logits.grad is not None
    assert not logits.grad[..., 1].any()
    assert logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_costs_nothing(name: str) -> None:
    logits = logits_of([0.2, 0.9]).requires_grad_()
    mask, distance = torch.full((1, 1, 2), 255), torch.zeros(1, 2, 1, 2)
    loss = segmentation_loss(logits, mask, ignore_id=255, loss={name: 1}, ohem=0.5, distance_BKHW=distance)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes(name: str, scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, mask = scene
    logits, mask = logits[:1, :, :3, :3].clone().requires_grad_(), mask[:1, :3, :3]
    distance = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([1.0, 2.0, 0.5])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        how = {"class_weights": weights, "distance_BKHW": distance, "focal_gamma": 0.5}
        return segmentation_loss(logits, mask, ignore_id=255, loss={name: 1.0}, **how)  # type: ignore[arg-type]

    (grad,) = torch.autograd.grad(loss(logits), logits)
    step = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) * 1e-2
    with torch.no_grad():
        rise = loss(logits + step) - loss(logits - step)
    assert rise.item() == pytest.approx(2 * (grad * step).sum().item(), rel=0.02, abs=1e-5)


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 2, 256, 256, dtype=torch.bfloat16)
    loss = segmentation_loss(logits, torch.ones(1, 256, 256), ignore_id=255, loss={"ce": 1})
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_unknown_names_suggest_near_ones(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(InputError, match=r"unknown loss lovas; did you mean 'lovasz'\?"):
        loss_of(*scene, loss={"lovas": 1})
    with pytest.raises(InputError, match=r"unknown class_weights invers; did you mean 'inverse'\?"):
        class_weights("invers", (1, 2), CPU)


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        # The roots of 400 and 100 are 20 and 10; 1/20 and 1/10 average 3/40.
        ("sqrt_inverse", [2 / 3, 4 / 3, 0.0]),
        ("inverse", [2 / 5, 8 / 5, 0.0]),
        # An average class has 250 pixels: 1 - (1 - 1/250)^400 = 0.7988 and 1 - (1 - 1/250)^100 = 0.3302.
        ("effective", [2 * 0.3302 / 1.1290, 2 * 0.7988 / 1.1290, 0.0]),
    ],
)
def test_class_weights_by_hand(kind: str, by_hand: list[float]) -> None:
    assert class_weights("none", (1, 2), CPU) is None
    weights = class_weights(kind, (400, 100, 0), CPU)
    assert weights is not None and weights.tolist() == pytest.approx(by_hand, abs=2e-4)
