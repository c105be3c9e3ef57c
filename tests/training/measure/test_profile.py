from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segmill.training.measure.profile import (
    KINDS,
    PHASES,
    advice,
    flop_of_convolution_backward,
    kind_of,
    matmul_peak,
    measure_steps,
    random_batches,
    shares_of_kinds,
)
from segmill.training.measure.profile_job import ProfileResult
from tests.training.conftest import SETTINGS, SIDE_PX, tiny_module

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mkldnn_convolution", [[8, 16, 9, 9], [32, 16, 3, 3]], "dense convolution"),
        ("aten::mkldnn_convolution", [[8, 16, 9, 9], [16, 1, 3, 3]], "depthwise convolution"),
        ("aten::convolution_backward", [[8, 16, 9, 9], [8, 16, 9, 9], [16, 1, 3, 3]], "depthwise convolution"),
        ("aten::convolution_backward", [[8, 1, 9, 9], [8, 1, 9, 9], [1, 1, 3, 3]], "dense convolution"),
        ("aten::native_batch_norm_backward", [], "normalisation"),
        ("aten::hardtanh_backward", [], "activation"),
        ("aten::upsample_bilinear2d_backward", [], "interpolation"),
        ("aten::addmm", [], "matmul"),
        ("aten::copy_", [], "copying"),
        ("aten::_log_softmax", [], "other"),
        ("aten::sum", [], "other"),
    ],
)
def test_operators_fall_into_kinds(name: str, shapes: list[list[int]], kind: str) -> None:
    assert kind_of(name, shapes) == kind


def test_shares_are_of_the_time_of_all_operators() -> None:
    shares = shares_of_kinds([("aten::mm", [], 30.0), ("aten::bmm", [], 30.0), ("aten::sum", [], 20.0)])
    assert shares == {kind: {"matmul": 0.75, "other": 0.25}.get(kind, 0.0) for kind in KINDS}
    assert set(shares_of_kinds([]).values()) == {0.0}


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_costs_three_times_forward_to_train(groups: int) -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    image = torch.randn(2, 8, 10, 12, requires_grad=True)
    counted = {torch.ops.aten.convolution_backward: flop_of_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        conv(image).sum().backward()
    # Two a multiply-add: 2 images, 120 places, 16 channels out, 8 / groups in, 9 weights.
    assert counter.get_total_flops() == 3 * 2 * 2 * 120 * 16 * (8 // groups) * 9


def test_a_member_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    batches = random_batches(4, (SIDE_PX, SIDE_PX), 2)
    costs = measure_steps(
        tiny_module(), SETTINGS, batches, device=CPU, dtype=None, class_weights=None, steps=2  # type: ignore[arg-type]
    )  # fmt: skip
    assert tuple(costs.phases) == PHASES
    assert all(seconds >= 0 for seconds in costs.phases.values()) and costs.phases["backward"] > 0
    assert sum(costs.kinds.values()) == pytest.approx(1)
    assert costs.kinds["dense convolution"] > 0 and costs.kinds["depthwise convolution"] == 0
    # 4096 pixels; 27 x 4, 4 x 4 and 4 x 2 weights; three times each, but the image needs no gradient.
    assert costs.step_flop == 2 * 4 * SIDE_PX**2 * (2 * 108 + 3 * 16 + 3 * 8)
    assert costs.peak_memory_bytes > 2**26


def test_the_peak_is_plausible() -> None:
    assert 1e8 < matmul_peak(None, CPU) < 1e14


def facts(**own: Any) -> ProfileResult:
    phases = dict.fromkeys(PHASES, 0.0) | {"forward": 0.3, "backward": 0.6, "loss": 0.1}
    kinds = dict.fromkeys(KINDS, 0.0) | {"dense convolution": 0.4, "depthwise convolution": 0.3, "other": 0.3}
    return ProfileResult(
        member="a", device="cpu", threads=1, precision="float32", batch_size=8, size_px=(64, 64), made_up=False,
        steps=1, step_s=1.0, images_s=8.0, step_flop=1, phases=phases | own.pop("phases", {}),
        kinds=kinds | own.pop("kinds", {}), peak_memory_bytes=1, reached_flops=1.0, peak_flops=1.0,
        share_of_peak=own.pop("share_of_peak", 0.3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"phases": {"data": 0.2, "backward": 0.4}}, "20% of a step waits for data: set ray.loader_workers"),
        ({"phases": {"optimizer": 0.1, "average": 0.1}}, "20% of a step updates weights"),
        ({"phases": {"loss": 0.3}}, "30% of a step is the loss at full size"),
        ({"share_of_peak": 0.6}, "it reaches 60% of what matrix products reach here"),
        ({}, "dense convolutions take 40% of the operators' time, at 30% of the peak"),
        ({"kinds": {"depthwise convolution": 0.5}}, "depthwise convolution takes 50% of the operators' time"),
    ],
)
def test_advice_follows_from_the_figures(own: dict[str, Any], said: str) -> None:
    assert advice(facts(**own)).startswith(said)
