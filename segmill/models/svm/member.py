"""The classical member: features of each pixel, an approximated RBF kernel, a linear SVM; no network, no pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segmill.enhancement import check_images, enhance
from segmill.errors import InputError, near_miss
from segmill.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from segmill.models.precision import pick_device
from segmill.models.svm.features import FAMILIES, FrozenBackbone, pixel_features
from segmill.models.weights import Weights, resolve

FORMAT = 1
# Pixels that are compared to all landmarks at once: 2 MB at 500 of them, which a processor's cache holds.
PIXELS_AT_ONCE = 1024
# Features are clipped at this many standard deviations.
FARTHEST = 5.0
# Variance of a lightness of 0..1 in a window from which on it counts as an edge that smoothing keeps.
EDGE_VARIANCE = 1e-3


@dataclass(frozen=True)
class SvmSpec:
    """Everything that is needed to rebuild a classical member, except its arrays.

    ``classes``: ids that it can predict, ascending; the others get probability 0. ``channels``: family of features
    to the numbers of its channels in use. ``backbone``, ``mean`` and ``std``: of the family cnn. ``smooth_px``: of
    ``smoothed``. ``grayscale`` and ``clahe``: what is done to every image it predicts, as it was to those it learned
    from (``enhance``).
    """

    name: str
    num_classes: int
    classes: tuple[int, ...]
    channels: dict[str, tuple[int, ...]]
    components: int
    gamma: float
    backbone: str | None = None
    in_channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    grayscale: bool = False
    clahe: float = 0.0
    smooth_px: int = 0


class KernelMachine(nn.Module):
    """logits = coefficients @ exp(-gamma |x - landmark|^2) + intercept, of standardised features x.

    A linear model on Nyström's map of the RBF kernel, exp(-gamma |x - landmark|^2) times a matrix, is this too: the
    matrix goes into the coefficients, and so does a linear calibration.
    Source: Williams & Seeger 2001, "Using the Nyström Method to Speed Up Kernel Machines".
    """

    def __init__(self, features: int, landmarks: int, classes: int, gamma: float, cnn: FrozenBackbone | None = None):
        super().__init__()
        self.gamma = gamma
        self.cnn = cnn
        self.centre: Tensor
        self.scale: Tensor
        self.landmarks: Tensor
        self.coefficients: Tensor
        self.intercept: Tensor
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("landmarks", torch.zeros(landmarks, features))
        self.register_buffer("coefficients", torch.zeros(classes, landmarks))
        self.register_buffer("intercept", torch.zeros(classes))

    def standardised(self, features_PC: Tensor) -> Tensor:
        """Return features_PC with mean 0 and standard deviation 1 over the train pixels, none beyond FARTHEST."""
        return ((features_PC - self.centre) * self.scale).clamp_(-FARTHEST, FARTHEST)

    def similarities(self, features_PC: Tensor) -> Tensor:
        """Return exp(-gamma |x - landmark|^2) of raw features: P x landmarks, in 0..1."""
        points_PC = self.standardised(features_PC)
        # -gamma |x - z|^2 = 2 gamma x z - gamma |x|^2 - gamma |z|^2 as one product.
        ones = torch.ones_like(points_PC[:, :1])
        points = torch.cat([points_PC, points_PC.square().sum(1, keepdim=True), ones], dim=1)
        squares = self.landmarks.square().sum(1, keepdim=True)
        ones = torch.ones_like(squares)
        landmarks = self.gamma * torch.cat([2 * self.landmarks, -ones, -squares], dim=1)
        return (points @ landmarks.T).exp_()

    def forward(self, features_PC: Tensor) -> Tensor:
        """Return logits_PK of raw features, a few pixels at a time."""
        blocks = features_PC.split(PIXELS_AT_ONCE)  # type: ignore[no-untyped-call]
        return torch.cat([self.similarities(block) @ self.coefficients.T + self.intercept for block in blocks])


class SvmMember:
    """A classical member, rebuilt from its folder alone; what ``Member`` is for networks."""

    def __init__(self, spec: SvmSpec, machine: KernelMachine, device: torch.device):
        self.spec = spec
        self.device = device
        self.machine = machine.to(device).eval()

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> SvmMember:
        """Rebuild the member saved in ``folder`` on ``device`` (auto: a GPU where there is one).

        Raises InputError where a file is missing, unreadable, or does not fit the others.
        """
        try:
            spec = _read_spec(json.loads((folder / "member.json").read_text())["spec"])
            state = load_file(folder / "weights.safetensors")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as reason:
            raise InputError(
                f"{folder} is no classical member's folder ({type(reason).__name__}: {reason}); train the member again"
            ) from None
        cnn = FrozenBackbone(spec.backbone, spec.mean, spec.std) if spec.backbone else None
        features = sum(map(len, spec.channels.values()))
        machine = KernelMachine(features, spec.components, len(spec.classes), spec.gamma, cnn)
        try:
            machine.load_state_dict(state)
        except RuntimeError as reason:
            raise InputError(
                f"{folder}: weights.safetensors does not fit member.json ({str(reason).splitlines()[0]}); "
                "train the member again"
            ) from None
        return cls(spec, machine, pick_device(device))

    def predict_probs(self, image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return class probabilities; one image's features are in memory at a time.

        Args:
            image_BHWC: uint8, any H and W, three channels.

        Returns:
            probs_BKHW float32 at the image's own size; sums to 1 over K, 0 for a class that train did not have. The
            same input gives the same bits.

        Raises:
            InputError: another dtype, number of axes or channels.
        """
        check_images(image_BHWC)
        return np.stack(
            [smoothed(self.raw_probs(image_HWC), image_HWC, self.spec.smooth_px) for image_HWC in image_BHWC]
        )

    def raw_probs(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probs_KHW float32 before smoothing of one uint8 image; sums to 1 over K."""
        height, width = image_HWC.shape[:2]
        seen_HWC = enhance(np.ascontiguousarray(image_HWC), grayscale=self.spec.grayscale, clahe=self.spec.clahe)
        features_CHW = pixel_features(seen_HWC, self.spec.channels, self.machine.cnn)
        with torch.inference_mode():
            features_PC = torch.from_numpy(features_CHW).to(self.device).flatten(1).T
            known_PK = self.machine(features_PC).softmax(dim=1)
        probs_KHW = np.zeros((self.spec.num_classes, height, width), np.float32)
        probs_KHW[list(self.spec.classes)] = known_PK.T.reshape(-1, height, width).cpu().numpy()
        return probs_KHW


def smoothed(probs_KHW: NDArray[np.float32], image_HWC: NDArray[np.uint8], smooth_px: int) -> NDArray[np.float32]:
    """Return the probabilities smoothed within ``smooth_px``, but not across edges of the image; 0 changes nothing.

    A classifier of single pixels leaves thin noise; thin structures suffer, so it is used only where it helps on
    val. The guide is the luma. The filter is linear and keeps a constant, so that the sum over classes stays 1.
    Source: the guided filter, He, Sun & Tang 2010.
    """
    if not smooth_px:
        return probs_KHW
    window = (2 * smooth_px + 1,) * 2

    def mean(plane: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(cv2.boxFilter(plane, cv2.CV_32F, window, borderType=cv2.BORDER_REPLICATE))

    guide = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
    guide_mean = mean(guide)
    variance = mean(guide * guide) - guide_mean * guide_mean + np.float32(EDGE_VARIANCE)
    result = np.empty_like(probs_KHW)
    for number, probs_HW in enumerate(probs_KHW):
        probs_mean = mean(probs_HW)
        slope = (mean(guide * probs_HW) - guide_mean * probs_mean) / variance
        offset = probs_mean - slope * guide_mean
        result[number] = mean(slope) * guide + mean(offset)
    np.clip(result, 0, None, out=result)
    result /= result.sum(axis=0)
    return result


def save_svm(
    folder: Path,
    machine: KernelMachine,
    spec: SvmSpec,
    *,
    weights: Weights,
    params: dict[str, Any],
    data_version: str,
    metrics: dict[str, Any],
) -> None:
    """Write weights.safetensors, member.json and metrics.json; the caller adds curves.csv.

    ``weights`` is where the frozen backbone comes from. ``folder`` must be a temporary one that the caller renames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in machine.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    member = {
        "format": FORMAT,
        "kind": "svm",
        "spec": asdict(spec),
        "encoder_weights": {"source": weights.source, "sha256": weights.sha256},
        "params": params,
        "data_version": data_version,
    }
    (folder / "member.json").write_text(json.dumps(member, indent=2) + "\n")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def check_svm(features: Sequence[str], backbone: str | None, weights: str) -> Weights:
    """Return where the frozen backbone's weights lie; ``none`` where the features need none.

    Raises InputError for an unknown family, for cnn without a backbone or without pretrained weights, and where the
    backbone or the weights can't be reached.
    """
    for family in features:
        if family not in FAMILIES:
            raise InputError(f"unknown features {family}{near_miss(family, FAMILIES)} ({', '.join(FAMILIES)})")
    if "cnn" not in features:
        return resolve("none", "")
    if backbone is None or weights == "none":
        raise InputError(
            f"the features cnn came with backbone {backbone} and weights {weights}; random ones are useless: name "
            "a backbone and its weights (timm, file:PATH, package:NAME), or leave cnn out"
        )
    start = resolve(weights, backbone)
    FrozenBackbone(backbone, IMAGENET_MEAN, IMAGENET_STD).load_pretrained(start)
    return start


def _read_spec(facts: dict[str, Any]) -> SvmSpec:
    tuples = {key: tuple(facts[key]) for key in ("classes", "mean", "std")}
    channels = {family: tuple(numbers) for family, numbers in facts["channels"].items()}
    return SvmSpec(**facts | tuples | {"channels": channels})
