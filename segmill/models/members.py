"""A member: built from its spec, saved as a folder, rebuilt from that folder alone, asked for predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segmill.enhancement import enhance_all
from segmill.errors import InputError
from segmill.models.backbones import IMAGENET_MEAN, IMAGENET_STD, encoder_name
from segmill.models.decoders import MIN_SIDE_PX, assemble
from segmill.models.precision import autocast, autocast_dtype, pick_device
from segmill.models.weights import Weights, resolve

STRIDE_PX = 32
FORMAT = 1
# Pixels of one forward pass in predict_probs: 16 images of 512 x 512. More gains nothing and costs memory.
PIXELS_AT_ONCE = 16 * 512 * 512


@dataclass(frozen=True)
class MemberSpec:
    """All it takes to build a member's network and to ask it.

    ``mean`` and ``std``: per channel, of images in 0..1. ``grayscale`` and ``clahe``: what is done to every image it
    predicts, as it was to those it was trained on (``enhance``).
    """

    name: str
    backbone: str
    decoder: str
    num_classes: int
    in_channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    grayscale: bool = False
    clahe: float = 0.0


class MemberModule(nn.Module):
    """image_BHWC uint8, of any height and width and enhanced as it was for training, to logits_BKHW at its size.

    Normalises inside, pads to the stride by repeating the last row and column, and crops the logits back.
    The permuted input lies in channels-last order as it is.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], min_side_px: int = STRIDE_PX):
        super().__init__()
        self.net = net
        self.min_side_px = min_side_px
        shape = (1, len(mean), 1, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(shape)), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        encoder: nn.Module = self.net.encoder  # type: ignore[assignment]
        return encoder

    def forward(self, image_BHWC: Tensor) -> Tensor:
        height, width = image_BHWC.shape[1:3]
        image_BCHW = (image_BHWC.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        below = max(-height % STRIDE_PX, self.min_side_px - height)
        right = max(-width % STRIDE_PX, self.min_side_px - width)
        if below or right:
            image_BCHW = F.pad(image_BCHW, (0, right, 0, below), mode="replicate")
        logits_BKHW: Tensor = self.net(image_BCHW)
        return logits_BKHW[..., :height, :width]


def build(spec: MemberSpec) -> MemberModule:
    """Return the member's network with random weights, in training mode; seed torch before for the same ones.

    Raises InputError for unknown names and for a backbone and a decoder that don't go together.
    """
    net = assemble(
        encoder_name(spec.backbone), spec.decoder, num_classes=spec.num_classes, in_channels=spec.in_channels
    )
    return MemberModule(net, spec.mean, spec.std, MIN_SIDE_PX.get(spec.decoder, STRIDE_PX))


def save_member(
    folder: Path,
    module: MemberModule,
    spec: MemberSpec,
    *,
    weights: Weights,
    params: dict[str, Any],
    data_version: str,
    metrics: dict[str, Any],
    curves: list[dict[str, Any]],
) -> None:
    """Write the member folder: weights.safetensors, member.json, metrics.json, curves.csv.

    ``weights`` is where the encoder started from; ``curves`` holds one row per epoch, all with the same keys.
    ``folder`` must be a temporary one that the caller renames when everything is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    member = {
        "format": FORMAT,
        "spec": asdict(spec),
        "encoder_weights": {"source": weights.source, "sha256": weights.sha256},
        "params": params,
        "data_version": data_version,
    }
    (folder / "member.json").write_text(json.dumps(member, indent=2) + "\n")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_curves(folder / "curves.csv", curves)


def write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    """Replace the CSV at ``path`` by ``curves``: one row per epoch, a header from the first row's keys."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(curves[0]) if curves else [])
        writer.writeheader()
        writer.writerows(curves)
    draft.replace(path)


class Member:
    """A trained member, rebuilt from its folder alone: no hub, no network."""

    def __init__(self, spec: MemberSpec, module: MemberModule, device: torch.device):
        self.spec = spec
        self.device = device
        self.dtype = autocast_dtype("auto", device)
        self.module = module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Member:
        """Rebuild the member saved in ``folder`` on ``device`` (auto: a GPU where there is one).

        Raises InputError where a file is missing, unreadable, or does not fit the others.
        """
        try:
            facts = json.loads((folder / "member.json").read_text())
            spec = MemberSpec(**facts["spec"] | {key: tuple(facts["spec"][key]) for key in ("mean", "std")})
            state = load_file(folder / "weights.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as reason:
            raise InputError(
                f"{folder} is no member folder ({type(reason).__name__}: {reason}); train the member again"
            ) from None
        module = build(spec)
        try:
            module.load_state_dict(state)
        except RuntimeError as reason:
            raise InputError(
                f"{folder}: weights.safetensors does not fit member.json ({str(reason).splitlines()[0]}); "
                "other versions of timm or segmentation-models-pytorch wrote it: train the member again"
            ) from None
        return cls(spec, module, pick_device(device))

    def predict_probs(self, image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return class probabilities.

        Args:
            image_BHWC: uint8, any H and W, C as trained (3).

        Returns:
            probs_BKHW float32 at the image's own size; sums to 1 over K. The same input gives the same bits.

        Raises:
            InputError: another dtype, number of axes or channels.
        """
        channels = self.spec.in_channels
        if image_BHWC.dtype != np.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[3] != channels:
            raise InputError(
                f"images came as {image_BHWC.dtype} of shape {image_BHWC.shape}; a batch is uint8 of shape "
                f"(images, height, width, {channels})"
            )
        images, height, width = image_BHWC.shape[:3]
        probs_BKHW = np.empty((images, self.spec.num_classes, height, width), np.float32)
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        with torch.inference_mode():
            for start in range(0, images, at_once):
                seen_BHWC = enhance_all(
                    np.ascontiguousarray(image_BHWC[start : start + at_once]),
                    grayscale=self.spec.grayscale,
                    clahe=self.spec.clahe,
                )
                batch_BHWC = torch.from_numpy(seen_BHWC)
                with autocast(self.dtype, self.device):
                    logits_BKHW = self.module(batch_BHWC.to(self.device, non_blocking=True))
                probs = logits_BKHW.float().softmax(dim=1)
                probs_BKHW[start : start + at_once] = probs.cpu().numpy()
        return probs_BKHW


def check_members(members: list[dict[str, str]]) -> None:
    """Build each member's network and reach for its weights, so that nothing is trained in vain.

    Args:
        members: dicts of name, backbone, decoder, weights.

    Raises:
        InputError: a line for every member that can't be built or whose weights can't be reached.
    """
    faults = []
    for member in members:
        try:
            build(MemberSpec(member["name"], member["backbone"], member["decoder"], num_classes=2))
            resolve(member["weights"], member["backbone"])
        except InputError as fault:
            faults.append(f"member {member['name']}: {fault}")
    if faults:
        raise InputError("\n".join(faults))
