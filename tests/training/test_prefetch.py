from __future__ import annotations

import pytest
import torch

from segmill.data.loading.batches import Batch
from segmill.data.packing.packed import PackedSplit
from segmill.training.prefetch import on_device
from tests.training.conftest import batches


def test_on_a_cpu_they_come_as_they_are(split: PackedSplit) -> None:
    made = list(batches(split, distances=True).epoch(0))
    came = list(on_device(iter(made), torch.device("cpu")))
    assert [id(batch) for batch in came] == [id(batch) for batch in made]
    assert came[0].distance is not None and came[0].distance.shape == (4, 2, 32, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("distances", [False, True])
def test_on_a_gpu_each_comes_once_in_order_while_the_one_before_is_computed(distances: bool) -> None:
    device = torch.device("cuda")
    shape = (2, 256, 256)
    made = [
        Batch(
            torch.full((*shape, 3), number, dtype=torch.uint8).pin_memory(),
            torch.full(shape, number, dtype=torch.uint8).pin_memory(),
            torch.full(shape, number, dtype=torch.float16).pin_memory() if distances else None,
        )
        for number in range(20)
    ]
    weight = torch.randn(4096, 4096, device=device)
    sums = []
    for batch in on_device(iter(made), device):
        weight = weight @ weight * 1e-4  # keeps the computing stream busy, so that a copy too late would show
        sums.append(torch.stack([part.double().mean() for part in batch if part is not None]))
    assert [values.unique().tolist() for values in torch.stack(sums).cpu()] == [[number] for number in range(20)]
