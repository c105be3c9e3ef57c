"""Muon: orthogonalised momentum for weights that are matrices; AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.optim import AdamW

# Of the quintic Newton-Schulz iteration (Jordan et al. 2024): singular values come out between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(AdamW):
    """Muon (Jordan et al. 2024) for parameters that are matrices, AdamW for the others.

    A convolution's weights are a matrix, outputs x the rest, but for a depthwise one's, whose filters share no input.
    A step is the Nesterov momentum orthogonalised, times 0.2 x the root of its longer side, which gives it the size of
    AdamW's steps (Liu et al. 2025), so that both use one learning rate and one decay. torch's own Muon takes
    parameters of two axes only, and one at a time; here matrices of one shape go together.

    Args:
        groups: parameter groups; each is divided into its matrices and the others.
        lr: where a group has none.
        momentum: of the matrices.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float):
        apart = [
            {**group, "params": parameters, "matrices": matrices}
            for group in groups
            for matrices in (True, False)
            if (parameters := [one for one in group["params"] if _is_matrix(one) == matrices])
        ]
        super().__init__(apart, lr=lr, fused=True)
        self.momentum = momentum

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        every = self.param_groups
        for group in every:
            if group["matrices"]:
                self._step_matrices(group)
        self.param_groups = [group for group in every if not group["matrices"]]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = every
        return loss

    @torch.no_grad()
    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Parameter, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW looks for one wherever it loads a state
            velocity = state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
            direction = parameter.grad.lerp(velocity, self.momentum).flatten(1)
            alike.setdefault((direction.shape[0], direction.shape[1]), []).append((parameter, direction))
        for shape, members in alike.items():
            steps = orthogonalised(torch.stack([direction for _, direction in members]))
            for (parameter, _), step in zip(members, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.view(parameter.shape), alpha=-0.2 * group["lr"] * max(shape) ** 0.5)


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1, by Newton-Schulz in bfloat16.

    The result has the type of ``matrices_NRC``; a matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = (matrices_NRC.mT if tall else matrices_NRC).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrices_NRC.dtype)
    return result.contiguous()


def _is_matrix(parameter: Parameter) -> bool:
    return parameter.ndim > 1 and parameter.shape[1] > 1
