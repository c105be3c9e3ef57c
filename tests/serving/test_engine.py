"""OpenVINO computes a member only where it says the same as PyTorch, in less time; for other sizes PyTorch does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segmill.ensembling.predict import Ensemble
from segmill.models.members import Member, MemberSpec, build
from segmill.serving import engine
from segmill.serving.engine import SAME, CompiledMember, accelerated

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SPECS = [
    MemberSpec("a", "tf_efficientnet_lite0", "unet", 3, grayscale=True, clahe=2.0),
    MemberSpec("a", "resnet18", "fpn", 4, attention="scse", heads=("presence", "boundary")),
    MemberSpec("a", "vgg11", "linknet", 2),
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let OpenVINO be the faster one, whatever the machine does meanwhile."""
    times = iter([1.0, 2.0] * 100)
    monkeypatch.setattr(engine, "_seconds", lambda predict, image_BHWC: next(times))


def member(spec: MemberSpec = SPECS[0]) -> Member:
    torch.manual_seed(0)
    return Member(spec, build(spec), CPU)


def pictures(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def ensemble(*members: Member, watched: str = "") -> Ensemble:
    named: dict[str, Any] = {f"m{number}": one for number, one in enumerate(members)}
    detector: Any = SimpleNamespace(member=watched) if watched else None
    weights = dict.fromkeys(named, 1 / len(named))
    return Ensemble(named, weights, tta_hflip=True, facts={}, detector=detector)


@pytest.mark.parametrize(
    "spec",
    [SPECS[0], *(pytest.param(spec, marks=pytest.mark.long) for spec in SPECS[1:])],
    ids=lambda spec: f"{spec.backbone}-{spec.decoder}",
)
@pytest.mark.usefixtures("quick")
def test_it_says_what_pytorch_says_for_any_number_of_images(spec: MemberSpec) -> None:
    eager = member(spec)
    faster = CompiledMember(eager)
    assert faster.add(pictures(1, 70, 45)), "a size that has to be padded"
    for count in (1, 3):
        probs_BKHW = faster.predict_probs(pictures(count, 70, 45))
        assert probs_BKHW.dtype == np.float32 and probs_BKHW.shape == (count, spec.num_classes, 70, 45)
        np.testing.assert_allclose(probs_BKHW, eager.predict_probs(pictures(count, 70, 45)), atol=SAME / 10)
    again = faster.predict_probs(pictures(3, 70, 45))
    assert np.array_equal(again, probs_BKHW), "the first answer is kept, not overwritten by a later one"


@pytest.mark.usefixtures("quick")
def test_other_sizes_are_computed_as_before() -> None:
    eager = member()
    faster = CompiledMember(eager)
    faster.add(pictures(1, 64, 64))
    assert faster.sizes_px == ((64, 64),)
    assert np.array_equal(faster.predict_probs(pictures(2, 64, 96)), eager.predict_probs(pictures(2, 64, 96)))


@pytest.mark.usefixtures("quick")
def test_members_are_compiled_for_the_first_sizes_but_not_the_one_that_is_watched() -> None:
    one, other = member(MemberSpec("a", "resnet10t", "fpn", 2)), member()
    sides = (32, 64, 96, 128, 160, 32)
    faster, engines = accelerated(ensemble(one, other, watched="m1"), [pictures(1, side, 64)[0] for side in sides])
    assert engines == {"m0": "openvino", "m1": "pytorch"}
    assert faster.members["m1"] is other
    compiled = faster.members["m0"]
    assert isinstance(compiled, CompiledMember)
    assert sorted(compiled.sizes_px) == [(side, 64) for side in sides[:4]]
    assert faster.detector and faster.tta_hflip


def test_a_member_that_says_something_else_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    def other(module: Any, image_BHWC: Any) -> Callable[[Any], Any]:
        return lambda asked_BHWC: member().predict_probs(asked_BHWC) + np.float32(2 * SAME)

    monkeypatch.setattr(engine, "compiled", other)
    one = member(MemberSpec("a", "tf_efficientnet_lite0", "unet", 3))
    faster, engines = accelerated(ensemble(one), [pictures(1, 64, 64)[0]])
    assert engines == {"m0": "pytorch"} and faster.members["m0"] is one


def test_a_member_that_is_not_faster_or_can_t_be_compiled_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    one, image_HWC = member(), pictures(1, 64, 64)[0]
    times = iter([2.0, 1.0])
    monkeypatch.setattr(engine, "_seconds", lambda predict, image_BHWC: next(times))
    assert accelerated(ensemble(one), [image_HWC])[1] == {"m0": "pytorch"}

    def fails(module: Any, image_BHWC: Any) -> Any:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(engine, "compiled", fails)
    assert accelerated(ensemble(one), [image_HWC])[1] == {"m0": "pytorch"}


ALONE = """
import gc, signal, subprocess
import numpy as np
from segmill.models.members import MemberSpec, build
from segmill.serving.engine import compiled

module, image_BHWC = build(MemberSpec("a", "resnet10t", "fpn", 2)), np.zeros((1, 32, 32, 3), np.uint8)
first, second = compiled(module, image_BHWC), compiled(module, image_BHWC)
import openvino.tools.ovc as tools
print(type(tools.telemetry).__module__)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("a child ended"))
subprocess.run(["true"])
"""


def test_it_tells_nobody_of_its_use_and_leaves_signals_their_stack() -> None:
    """OpenVINO's own import posts to a server, and each of its cores gives its thread another stack for signals.

    Where that was taken back in the wrong order, the process died as a child of it ended.
    """
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "openvino.tools.ovc.telemetry_stub\na child ended\n"), done.stderr


def test_without_openvino_or_images_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = member()
    assert accelerated(ensemble(one), [])[1] == {"m0": "pytorch"}
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    faster, engines = accelerated(ensemble(one), [pictures(1, 64, 64)[0]])
    assert engines == {"m0": "pytorch"} and faster.members["m0"] is one
