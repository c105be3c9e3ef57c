"""The number type a member computes in: bf16 where the processor is fast in it, fp16 on older GPUs, else fp32."""

from __future__ import annotations

import contextlib

import torch

from segmill.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type for ``precision`` on ``device``; None is plain fp32.

    Raises InputError for an unknown precision, and for fp16 on a CPU, whose gradients nothing would scale.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise InputError("precision fp16 needs a GPU; on a CPU use auto, bf16 or fp32")
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if _cpu_is_quick_at_bf16() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a forward pass computes in ``dtype``; None changes nothing."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _cpu_is_quick_at_bf16() -> bool:
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
