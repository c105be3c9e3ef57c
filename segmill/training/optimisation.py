"""Optimizers, learning rates for each part of a network, and a moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.optim import SGD, AdamW, NAdam, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segmill.models.members import MemberModule
from segmill.training.losses import check_names
from segmill.training.muon import Muon

Tensors = tuple[Tensor, ...] | list[Tensor]

OPTIMIZERS = ("adamw", "nadam", "sgd", "muon")


def make_optimizer(
    module: nn.Module,
    stages: Sequence[Sequence[Parameter]],
    kind: str,
    *,
    lr: float,
    encoder_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    weight_decay: float,
    momentum: float = 0.9,
    others: Iterable[Parameter] = (),
) -> Optimizer:
    """Return the optimizer of a member; each of its groups knows its peak learning rate as ``peak_lr``.

    ``stages`` are the encoder's parameters, shallow to deep.

    ``adamw`` is AdamW (Loshchilov & Hutter 2019), ``nadam`` the same with Nesterov's momentum, which grows with the
    steps (Dozat 2016), ``sgd`` stochastic gradient descent with Nesterov's ``momentum`` (Sutskever et al. 2013),
    ``muon`` is muon.Muon, with ``momentum`` for its matrices. The decoder learns at ``lr``, the deepest stage of the
    encoder at ``lr * encoder_lr_factor`` and each stage above at ``layer_decay`` times the one below it (as BEiT, Bao
    et al. 2022, by layers). Biases and the scales of normalisation (tensors of one axis), and ``others`` are not
    decayed. InputError for an unknown ``kind``.

    More than eight parameters: the optimizers' own settings, by the names that their papers use.
    """
    check_names("optimizer", [kind], OPTIMIZERS)
    groups = parameter_groups(
        module, stages, lr=lr, encoder_lr_factor=encoder_lr_factor, layer_decay=layer_decay, weight_decay=weight_decay
    )
    if others := list(others):
        groups.insert(0, {"params": others, "lr": lr, "weight_decay": 0.0})
    for group in groups:
        group["peak_lr"] = group["lr"]
    if kind == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if kind == "nadam":
        return NAdam(groups, lr=lr, decoupled_weight_decay=True, foreach=True)
    if kind == "muon":
        return Muon(groups, lr=lr, momentum=momentum)
    return AdamW(groups, lr=lr, fused=True)


def parameter_groups(
    module: nn.Module,
    stages: Sequence[Sequence[Parameter]],
    *,
    lr: float,
    encoder_lr_factor: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return groups of parameters, encoder first, by learning rate and whether they are decayed."""
    pace = {
        id(parameter): encoder_lr_factor * layer_decay ** (len(stages) - 1 - depth)
        for depth, stage in enumerate(stages)
        for parameter in stage
    }
    groups: dict[tuple[bool, float, bool], list[Parameter]] = {}
    for parameter in module.parameters():
        inside = id(parameter) in pace
        key = (not inside, pace.get(id(parameter), 1.0), parameter.ndim <= 1)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr": lr * factor, "weight_decay": 0.0 if plain else weight_decay}
        for (_, factor, plain), params in sorted(groups.items(), key=lambda entry: entry[0])
    ]


class MovingAverage:
    """An exponential moving average of a module's weights and normalisation statistics, by torch's AveragedModel.

    ``decay`` is the share of the old average kept per step; early on it is less, (1 + n) / (10 + n) after n
    updates, so that the random start is soon forgotten.
    """

    def __init__(self, module: MemberModule, decay: float):
        def average(old: Tensors, new: Tensors, averaged: Tensor | int) -> None:
            if not old[0].is_floating_point():  # counters
                for mine, theirs in zip(old, new, strict=True):
                    mine.copy_(theirs)
                return
            updates = int(averaged) - 1
            get_ema_multi_avg_fn(min(decay, (1 + updates) / (10 + updates)))(old, new, averaged)  # type: ignore[no-untyped-call]

        self._averaged = AveragedModel(module, multi_avg_fn=average, use_buffers=True).eval().requires_grad_(False)
        # The start counts as one that was averaged: AveragedModel would let the first update replace it.
        self._averaged.n_averaged.fill_(1)

    @property
    def module(self) -> MemberModule:
        """The average, as a module."""
        module: MemberModule = self._averaged.module  # type: ignore[assignment]
        return module

    @property
    def updates(self) -> int:
        """How often ``update`` was called."""
        return int(self._averaged.n_averaged) - 1

    def update(self, module: nn.Module) -> None:
        """Move the average towards ``module``; counters (integer tensors) are copied."""
        self._averaged.update_parameters(module)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self._averaged.n_averaged.fill_(state["updates"] + 1)
