from __future__ import annotations

import pytest
import torch

from segmill.errors import InputError
from segmill.models.precision import autocast, autocast_dtype

CPU = torch.device("cpu")


def test_auto_is_bf16_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        assert autocast_dtype("auto", CPU) is expected


def test_what_is_asked_for_is_taken() -> None:
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    assert autocast_dtype("fp16", torch.device("cuda")) is torch.float16


def test_fp16_on_a_cpu_and_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        autocast_dtype("fp16", CPU)
    with pytest.raises(InputError, match="allowed are auto, fp32, bf16, fp16"):
        autocast_dtype("half", CPU)


def test_autocast_computes_in_its_type() -> None:
    a = torch.ones(2, 2)
    with autocast(torch.bfloat16, CPU):
        assert (a @ a).dtype is torch.bfloat16
    with autocast(None, CPU):
        assert (a @ a).dtype is torch.float32
