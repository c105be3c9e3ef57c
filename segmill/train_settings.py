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
    """Seed of the initial weights, the sample order and the augmentation."""
    epochs: Annotated[int, Ge(1)] = 20
    """Epochs of training; with max_minutes an upper bound."""
    max_minutes: Annotated[float, Gt(0)] | None = None
    """Time limit of a member's training in minutes; the schedule adapts to it. null: no limit."""
    batch_size: Annotated[int, Ge(1)] | Literal["auto"] = 8
    """Samples per micro-batch, over all workers together; auto finds the largest that fits in memory."""
    crop_size: tuple[Annotated[int, Ge(32)], Annotated[int, Ge(32)]] | None = None
    """Height and width of the random crop of each sample in training; null uses the whole sample."""
    grad_accum_steps: Annotated[int, Ge(1)] = 1
    """Micro-batches whose gradients are accumulated for one optimizer step."""
    optimizer: Literal["adamw", "nadam", "sgd", "muon"] = "adamw"
    """adamw, nadam (AdamW with Nesterov momentum), sgd (with Nesterov momentum) or muon."""
    momentum: Fraction = 0.9
    """Momentum of sgd and muon."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decoupled weight decay; biases and normalisation scales have none."""
    encoder_lr_factor: Annotated[float, Gt(0)] = 1.0
    """The learning rate of a pretrained encoder is lr times this."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Each stage of the encoder has this times the learning rate of the next deeper stage."""
    schedule: Literal["cosine", "poly", "onecycle", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_epochs: Annotated[float, Ge(0)] = 1.0
    """Epochs of linear learning-rate warm-up; with max_minutes at most a tenth of the time."""
    loss: Losses = field(default_factory=lambda: {"ce": 1.0, "dice": 1.0})
    """Weighted sum of the losses ce, focal, dice, tversky, lovasz and boundary."""
    focal_gamma: Annotated[float, Ge(0)] = 2.0
    """How strongly the focal loss concentrates on hard pixels; 0 is cross-entropy."""
    tversky_alpha: Fraction = 0.3
    """Weight of false positives in the Tversky loss; false negatives weigh 1 minus this."""
    class_weights: Literal["none", "sqrt_inverse", "inverse", "effective"] = "none"
    """Class weights of ce and focal: none, inverse or sqrt_inverse of the pixel share, or the effective number."""
    ohem: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the pixels, the hardest ones, that ce and focal use; 1 uses all."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of the moving average (EMA) of the weights, which is what is validated and saved; 0 is off."""
    max_grad_norm: Annotated[float, Ge(0)] = 0.0
    """Gradients with a larger norm are scaled down to it; 0 is off."""
    freeze_epochs: NonNegative = 0
    """Epochs at the start in which the encoder is frozen."""
    unfreeze_epochs: NonNegative = 0
    """Epochs after that in which the encoder is unfrozen stage by stage, the deepest first."""
    early_stopping_patience: NonNegative = 0
    """Validation runs without a new best after which training stops; 0 is off."""
    warm_start: bool = False
    """Start from the champion's member of the same name, if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type; auto takes bf16 where the processor is fast in it, else fp16 on a GPU, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute the encoder in the backward pass instead of storing its activations."""
    compile: Literal["off", "auto", "on"] = "off"
    """torch.compile; auto measures once per machine whether it is faster."""
    val_every: Annotated[int, Ge(1)] = 1
    """Epochs between two validation runs."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """A network member's own block of params.yaml, where each key has its limits, default and text."""

    backbone: str
    decoder: str
    weights: str
    lr: float
    decoder_width: float
    attention: str
    context: str
    aux_heads: Mapping[str, float]
    head_weights: str
    keep_heads: bool
    deep_supervision: float
