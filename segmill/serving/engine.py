"""OpenVINO for members on CPUs: where it is installed, says the same as PyTorch and is faster."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segmill.cluster.work import first_line
from segmill.enhancement import check_images, enhance_all
from segmill.ensembling.predict import Ensemble
from segmill.models.members import Member
from segmill.serving.lines import say

Pixels = NDArray[np.uint8]
Probs = NDArray[np.float32]
SizePx = tuple[int, int]  # height, width

SAME = 1e-3  # probabilities; of another order of sums it is 1e-5
MOST_SIZES = 4
TRIES = 3


class CompiledMember:
    """A member whose network was compiled for some sizes of images; it predicts those of other sizes as before."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._networks: dict[SizePx, Callable[[Pixels], Probs]] = {}

    @property
    def sizes_px(self) -> tuple[SizePx, ...]:
        return tuple(self._networks)

    def add(self, image_BHWC: Pixels) -> bool:
        """Compile the network for images of this size; False where it says something else or is not faster."""
        size_px = image_BHWC.shape[1], image_BHWC.shape[2]
        try:
            self._networks[size_px] = compiled(self.member.module, image_BHWC)
            same = np.abs(self.predict_probs(image_BHWC) - self.member.predict_probs(image_BHWC)).max() <= SAME
            faster = _seconds(self.predict_probs, image_BHWC) < _seconds(self.member.predict_probs, image_BHWC)
            why = "" if same and faster else "it is not faster" if same else "it says something else"
        except Exception as error:  # an operation that OpenVINO does not know; PyTorch computes it
            why = first_line(error)
        if why:
            self._networks.pop(size_px, None)
            say("OpenVINO does not compute a member", member=self.member.spec.name, size_px=size_px, why=why)
        return not why

    def predict_probs(self, image_BHWC: Pixels) -> Probs:
        """Return probs_BKHW float32, as ``Member.predict_probs`` does."""
        network = self._networks.get(image_BHWC.shape[1:3])
        if network is None:
            return self.member.predict_probs(image_BHWC)
        check_images(image_BHWC)
        spec = self.member.spec
        return network(enhance_all(np.ascontiguousarray(image_BHWC), grayscale=spec.grayscale, clahe=spec.clahe))


def accelerated(ensemble: Ensemble, examples: Sequence[Pixels]) -> tuple[Ensemble, dict[str, str]]:
    """Return the ensemble with faster members, and what computes each.

    The member that an anomaly detector watches stays as it is, so that scores are those that it was calibrated with.

    Args:
        ensemble: loaded.
        examples: images HWC uint8, C = 3. For their sizes members are compiled, for at most ``MOST_SIZES``.
    """
    chosen = {name: "pytorch" for name in ensemble.members}
    if not find_spec("openvino"):
        return ensemble, chosen
    watched = ensemble.detector.member if ensemble.detector else ""
    sizes: dict[SizePx, Pixels] = {}
    for image_HWC in examples:
        sizes.setdefault((image_HWC.shape[0], image_HWC.shape[1]), image_HWC[None])
    members: dict[str, Any] = dict(ensemble.members)
    for name, member in ensemble.members.items():
        if not isinstance(member, Member) or member.device.type != "cpu" or name == watched:
            continue
        faster = CompiledMember(member)
        if any([faster.add(image_BHWC) for image_BHWC in list(sizes.values())[:MOST_SIZES]]):
            members[name], chosen[name] = faster, "openvino"
    return ensemble.with_members(members), chosen


def compiled(module: nn.Module, image_BHWC: Pixels) -> Callable[[Pixels], Probs]:
    """Return a ``MemberModule`` with softmax, compiled for images of this size: image_BHWC to probs_BKHW float32."""
    core = _core()
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.from_numpy(np.ascontiguousarray(image_BHWC))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing says that the size of an image becomes a constant, as it should
        traced = torch.jit.trace(_Probabilities(module).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        # openvino.convert_model does the same, in five times the time.
        decoder = TorchScriptPythonDecoder(torch.jit.freeze(traced), example_input=example)
        front = FrontEndManager().load_by_framework("pytorch")
        model = front.convert(front.load(decoder))
    model.inputs[0].get_node().set_element_type(openvino.Type.u8)
    model.reshape(openvino.PartialShape([-1, *image_BHWC.shape[1:]]))
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # replicas on one machine would share the first cores
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda asked_BHWC: np.array(request.infer([asked_BHWC], share_inputs=True, share_outputs=True)[0])


@cache
def _core() -> Any:
    """Return this process's one ``openvino.Core``, which lives as long as the process.

    Each one gives its thread a stack for signals and, when it goes, the stack of before: with a second one that is
    memory which the first gave back, and the next signal that Python handles ends the process.
    """
    # OpenVINO tells Intel's server of each import, from a process that it forks off this one; without that package it
    # does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


class _Probabilities(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image_BHWC: Tensor) -> Tensor:
        logits_BKHW: Tensor = self.module(image_BHWC, heads=False)["logits"]
        return logits_BKHW.softmax(dim=1)


def _seconds(predict: Callable[[Pixels], Probs], image_BHWC: Pixels) -> float:
    """Return the least of some tries."""
    took = []
    for _ in range(TRIES):
        began = time.perf_counter()
        predict(image_BHWC)
        took.append(time.perf_counter() - began)
    return min(took)
