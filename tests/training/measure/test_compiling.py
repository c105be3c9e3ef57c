from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segmill.training.measure.compiling import Speeds, measure, remembered
from segmill.training.measure.rehearsal import Rehearsal
from tests.training.conftest import SETTINGS, SIDE_PX, tiny_module

CPU = torch.device("cpu")


@pytest.mark.parametrize(("steps", "pays"), [(199, False), (200, False), (201, True), (10_000, True)])
def test_compiling_pays_from_the_step_that_makes_up_for_it(steps: int, pays: bool) -> None:
    assert Speeds(eager_s=1.0, compiled_s=0.5, compiling_s=100.0).pays(steps) is pays


def test_what_is_slower_or_fails_never_pays() -> None:
    assert not Speeds(eager_s=1.0, compiled_s=1.1).pays(10**9)
    failed = Speeds(eager_s=1.0, reason="no C++ compiler")
    assert not failed.pays(10**9) and not failed.works
    assert failed.say(10) == "not compiled: torch.compile fails here (no C++ compiler)"
    assert Speeds(1.0, 0.5, 100.0).say(300).startswith("compiled: a step takes 1.000 s, compiled 0.500 s after 100 s")


def test_a_member_is_measured_once_per_machine(tmp_path: Path) -> None:
    calls = []

    def first() -> Speeds:
        calls.append(1)
        return Speeds(2.0, 1.0, 30.0)

    assert remembered({"batch": 4}, first, tmp_path / "new") == Speeds(2.0, 1.0, 30.0)
    assert remembered({"batch": 4}, first, tmp_path / "new") == Speeds(2.0, 1.0, 30.0)
    assert len(calls) == 1
    remembered({"batch": 8}, first, tmp_path / "new")
    assert len(calls) == 2
    for file in (tmp_path / "new").iterdir():
        file.write_text("half")
    assert remembered({"batch": 4}, first, tmp_path / "new") == Speeds(2.0, 1.0, 30.0)


def uncompilable(message: str) -> Callable[[bool], Rehearsal]:
    """Steps of two seconds, which fail with ``message`` when compiled."""

    class Uncompilable:
        def __init__(self, compiled: bool) -> None:
            self.compiled = compiled

        def step(self, batch_size: int) -> float:
            if self.compiled:
                raise RuntimeError(message)
            return 2.0

    return Uncompilable  # type: ignore[return-value]


def test_a_machine_that_cannot_compile_says_so() -> None:
    said = "backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found\nmore"
    speeds = measure(uncompilable(said), 2)
    assert speeds == Speeds(2.0, reason="InvalidCxxCompiler: No working C++ compiler found")


def test_memory_that_runs_out_while_compiling_is_no_missing_compiler() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(uncompilable("CUDA error: out of memory"), 2)


@pytest.mark.long
def test_compiled_steps_learn_the_same() -> None:
    made: dict[bool, Rehearsal] = {}

    def plain(compiled: bool) -> Rehearsal:
        made[compiled] = Rehearsal(
            tiny_module(plain=True), replace(SETTINGS, optimizer="sgd"), size_px=(SIDE_PX, SIDE_PX),
            device=CPU, compiled=compiled,
        )  # fmt: skip
        return made[compiled]

    seconds = measure(plain, 2)
    assert seconds.works and seconds.compiled_s is not None and seconds.compiling_s > seconds.compiled_s > 0
    start, moved = tiny_module(plain=True).state_dict(), {}
    for compiled, one in made.items():
        one._training.module.load_state_dict(start)
        one._training.optimizer.state.clear()
        for seed in range(2):
            torch.manual_seed(seed)
            one.step(2)
        moved[compiled] = one._training.module.state_dict()
    assert moved[False].keys() == moved[True].keys() == start.keys()
    assert not any(torch.equal(tensor, start[name]) for name, tensor in moved[False].items())
    for name, tensor in moved[False].items():
        torch.testing.assert_close(moved[True][name], tensor, rtol=1e-3, atol=1e-3)


def test_a_rehearsal_leaves_the_network_as_it_was() -> None:
    module = tiny_module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tried = Rehearsal(module, SETTINGS, size_px=(SIDE_PX, SIDE_PX), device=CPU)
    assert tried.step(3) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not all(parameter.grad is not None for parameter in module.parameters())
    moved = tried._training.module.state_dict()
    assert any(not torch.equal(moved[name], tensor) for name, tensor in before.items())
