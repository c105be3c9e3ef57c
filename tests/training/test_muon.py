from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim import Muon as TorchMuon

from segmill.training.muon import Muon, orthogonalised


def weights(*shape: int) -> Parameter:
    return Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))


@pytest.mark.parametrize("shape", [(3, 6, 20), (2, 20, 6)])
def test_singular_values_come_near_1(shape: tuple[int, ...]) -> None:
    matrices = weights(*shape).detach()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalised(matrices)
    values = (left.mT @ found @ right.mT).diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6 and values.max() < 1.3
    assert not orthogonalised(torch.zeros(1, 2, 2)).any()


def test_matrices_move_as_with_torchs_and_the_rest_as_with_adamw() -> None:
    def both() -> tuple[Parameter, ...]:
        return weights(6, 20), weights(6, 20), weights(7, 1, 3, 3), weights(5)  # the third is a depthwise convolution's

    mine, theirs = both(), both()
    groups = [{"params": [*mine[:3]], "weight_decay": 0.1}, {"params": [mine[3]], "weight_decay": 0.0}]
    optimizers = [Muon(groups, lr=0.1, momentum=0.9)]
    how = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    references = [
        TorchMuon(theirs[:2], **how),  # type: ignore[arg-type]
        AdamW([theirs[2]], lr=0.1, weight_decay=0.1),
        AdamW([theirs[3]], lr=0.1, weight_decay=0.0),
    ]
    for step in range(3):
        for some in (mine, theirs):
            for number, parameter in enumerate(some):
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(10 * step + number)
                )
        for optimizer in (*optimizers, *references):
            optimizer.step()
    for ours, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0.02, atol=0.02)


def test_a_convolution_is_a_matrix_of_its_outputs() -> None:
    flat, kernel = weights(4, 18), Parameter(weights(4, 18).detach().view(4, 2, 3, 3).clone())
    for parameter in (flat, kernel):
        parameter.grad = weights(4, 18).detach().view(parameter.shape) + 1
        Muon([{"params": [parameter]}], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(kernel.flatten(1), flat)
    still = weights(3, 3)
    Muon([{"params": [still]}], lr=0.1, momentum=0.9).step()  # frozen: no gradient
    assert torch.equal(still, weights(3, 3))
