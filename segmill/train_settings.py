"""The settings of a network's training: each key of params.yaml's ``train`` with its type, limits and default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

Fraction = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[int, Ge(0)]
LossName = Literal["ce", "focal", "dice", "tversky", "lovasz", "boundary"]
Losses = Annotated[Mapping[LossName, Annotated[float, Gt(0)]], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a network is trained. params.py checks what params.yaml says against the types and limits given here.

    The text below each field is its line in docs/options.md.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "use_attribute_docstrings": True}

    seed: int = 0
    """Decides weights, order and augmentation."""
    epochs: Annotated[int, Ge(1)] = 20
    """Passes over the training split; with max_minutes an upper bound."""
    max_minutes: Annotated[float, Gt(0)] | None = None
    """Time for a member's training; the schedule fits itself to it. null has no limit."""
    batch_size: Annotated[int, Ge(1)] | Literal["auto"] = 8
    """Samples per pass, all workers together; auto finds the largest that fits the memory."""
    crop_size: tuple[Annotated[int, Ge(32)], Annotated[int, Ge(32)]] | None = None
    """Height and width of the random window of a sample that training sees; null is all of it."""
    grad_accum_steps: Annotated[int, Ge(1)] = 1
    """Passes whose gradients make one step."""
    optimizer: Literal["adamw", "nadam", "sgd", "muon"] = "adamw"
    """adamw, nadam (AdamW with Nesterov's momentum), sgd (with it too) or muon."""
    momentum: Fraction = 0.9
    """Of sgd and muon."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decoupled decay of what is no bias and no scale."""
    encoder_lr_factor: Annotated[float, Gt(0)] = 1.0
    """The encoder of a pretrained member learns at lr times this."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Each stage of the encoder learns at this times the lr of the next deeper one."""
    schedule: Literal["cosine", "poly", "onecycle", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: Annotated[float, Ge(0)] = 1.0
    """Epochs of linear warm-up."""
    loss: Losses = field(default_factory=lambda: {"ce": 1.0, "dice": 1.0})
    """A sum of ce, focal, dice, tversky, lovasz and boundary, each times its number."""
    focal_gamma: Annotated[float, Ge(0)] = 2.0
    """How much the focal loss turns to hard pixels."""
    tversky_alpha: Fraction = 0.3
    """What false positives weigh in the Tversky loss; misses weigh 1 - it."""
    class_weights: Literal["none", "sqrt_inverse", "inverse", "effective"] = "none"
    """Weights of ce and focal: none; one over (the root of) a class's pixel share; effective number."""
    ohem: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the pixels, the hardest, that ce and focal count."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of the weights' moving average that is kept; 0 is off."""
    max_grad_norm: Annotated[float, Ge(0)] = 0.0
    """Gradients with a larger norm are scaled down to it; 0 is off."""
    freeze_epochs: NonNegative = 0
    """Epochs in which the encoder stands still at the start."""
    unfreeze_epochs: NonNegative = 0
    """Epochs after that over which its stages are let go, the deepest first."""
    early_stopping_patience: NonNegative = 0
    """Looks at val without a new best after which training ends; 0 is off."""
    warm_start: bool = False
    """Begin with the champion's member of the same name, where there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type; auto takes bf16 where the processor is quick at it, else fp16 on a GPU."""
    gradient_checkpointing: bool = False
    """Compute the encoder twice rather than keep its activations."""
    compile: Literal["off", "auto", "on"] = "off"
    """torch.compile; auto measures once per machine whether it pays."""
    val_every: Annotated[int, Ge(1)] = 1
    """Epochs between two looks at the val split."""
