"""Former names of keys in params.yaml, and the names they have now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRAIN = {
    "window_px": "crop_size",
    "accumulate": "grad_accum_steps",
    "clip_norm": "max_grad_norm",
    "early_stop": "early_stopping_patience",
    "checkpointing": "gradient_checkpointing",
    "ema": "ema_decay",
}

# Block of params.yaml -> former name -> name now. A block of ``members`` is a member, which takes keys of train too.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "prepare": {"crop_px": "border_crop_px"},
    "augment": {"balance": "oversample"},
    "train": _TRAIN,
    "members": {**_TRAIN, "heads": "aux_heads"},
    "ensemble": {"flips": "tta_hflip"},
}


def with_new_names(block: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded values of a block under the names that its keys have now; their order stays."""
    names = RENAMED.get(block, {})
    return {names.get(key, key): value for key, value in values.items()}
