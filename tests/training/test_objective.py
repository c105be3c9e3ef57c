from __future__ import annotations

import math

import pytest
import torch

from segmill.errors import InputError
from segmill.training.auxiliary import border_loss, presence_loss
from segmill.training.losses import segmentation_loss
from segmill.training.objective import Learner, Objective
from tests.training.conftest import tiny_module

LOSS = {"ce": 1.0}


@pytest.fixture
def outputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"logits": (2, 3, 8, 8), "presence": (2, 3), "boundary": (2, 1, 8, 8), "deep1": (2, 3, 4, 4)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def mask() -> torch.Tensor:
    """Blocks of 2 x 2 px, so that half the size loses nothing."""
    small = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return small.repeat_interleave(2, 1).repeat_interleave(2, 2)


def ce(logits: torch.Tensor, mask: torch.Tensor) -> float:
    return segmentation_loss(logits, mask, ignore_id=255, loss=LOSS).item()


def test_fixed_weights_are_a_sum(outputs: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
    objective = Objective(ignore_id=255, loss=LOSS, aux_heads={"presence": 0.5, "boundary": 2.0})
    by_hand = (
        ce(outputs["logits"], mask)
        + 0.5 * presence_loss(outputs["presence"], mask, ignore_id=255).item()
        + 2 * border_loss(outputs["boundary"], mask, ignore_id=255).item()
    )
    del outputs["deep1"]
    assert objective(outputs, mask).item() == pytest.approx(by_hand, abs=1e-6)
    assert not list(objective.parameters())


def test_coarser_stages_see_the_mask_at_their_size(outputs: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
    outputs["deep2"] = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    small = mask[:, ::2, ::2]
    deep = (ce(outputs["deep1"], small) + ce(outputs["deep2"], small)) / 2
    loss = Objective(ignore_id=255, loss=LOSS, deep_supervision=0.4)(outputs, mask)
    assert loss.item() == pytest.approx(ce(outputs["logits"], mask) + 0.4 * deep, abs=1e-6)


def test_learned_weights_start_where_they_are_given_and_move_to_what_a_task_costs(
    outputs: dict[str, torch.Tensor], mask: torch.Tensor
) -> None:
    del outputs["deep1"]
    objective = Objective(ignore_id=255, loss=LOSS, aux_heads={"presence": 0.5}, learned=True)
    tasks = [ce(outputs["logits"], mask), presence_loss(outputs["presence"], mask, ignore_id=255).item()]
    loss = objective(outputs, mask)
    assert loss.item() == pytest.approx(tasks[0] + 0.5 * tasks[1] + math.log(2) / 2, abs=1e-6)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for _ in range(500):
        optimizer.zero_grad()
        objective(outputs, mask).backward()
        optimizer.step()
    # The minimum of exp(-s) x loss + s / 2: each task weighs one over twice its loss.
    assert objective.log_variances is not None
    weights = (-objective.log_variances).exp().tolist()
    assert weights == pytest.approx([1 / (2 * task) for task in tasks], rel=1e-3)


def test_distances_are_asked_for_where_they_are_needed() -> None:
    assert not Objective(ignore_id=255, loss=LOSS, aux_heads={"boundary": 1}).needs_distances
    assert Objective(ignore_id=255, loss={"boundary": 0.1}).needs_distances
    assert Objective(ignore_id=255, loss=LOSS, aux_heads={"distance": 1}).needs_distances


def test_unknown_names_suggest_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown loss focall; did you mean 'focal'\?"):
        Objective(ignore_id=255, loss={"focall": 1})
    with pytest.raises(InputError, match=r"unknown head presense; did you mean 'presence'\?"):
        Objective(ignore_id=255, loss=LOSS, aux_heads={"presense": 1})


def test_the_network_computes_in_its_type_and_the_loss_in_float32() -> None:
    module = tiny_module()
    seen: list[torch.dtype] = []
    module.decoder.register_forward_hook(lambda _, given, output: seen.append(output.dtype))
    learner = Learner(module, Objective(ignore_id=255, loss=LOSS), torch.bfloat16)
    image, mask = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.ones(1, 8, 8, dtype=torch.uint8)
    assert learner(image, mask).dtype is torch.float32
    assert seen == [torch.bfloat16]
