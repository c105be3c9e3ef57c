"""A network member: built from its spec, saved as a folder, rebuilt from that folder alone; its predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segmill.enhancement import check_images, enhance_all
from segmill.errors import InputError
from segmill.models.backbones import IMAGENET_MEAN, IMAGENET_STD, encoder_name
from segmill.models.curves import write_curves
from segmill.models.gradient_checkpointing import set_gradient_checkpointing
from segmill.models.networks import STRIDE_PX, Network, assemble
from segmill.models.precision import autocast, autocast_dtype, pick_device
from segmill.models.weights import Weights

FORMAT = 1
UNUSED = "net.encoder.model.head."
# Pixels of one forward pass in predict_probs: 16 images of 512 x 512. More gains nothing and costs memory.
PIXELS_AT_ONCE = 16 * 512 * 512


@dataclass(frozen=True)
class MemberSpec:
    """Everything that is needed to build a member's network and to predict with it.

    ``mean`` and ``std``: per channel, of images in 0..1. ``grayscale`` and ``clahe``: what is done to every image it
    predicts, as it was to those it was trained on (``enhance``). ``decoder_width``, ``attention``, ``context``,
    ``heads`` and ``deep_supervision``: how the network differs from its backbone and decoder alone (see
    networks.assemble).
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
    decoder_width: float = 1.0
    attention: str = "none"
    context: str = "none"
    heads: tuple[str, ...] = ()
    deep_supervision: bool = False


class MemberModule(nn.Module):
    """image_BHWC uint8, of any height and width and enhanced as it was for training, to logits_BKHW at its size.

    Normalises inside, pads to the multiple the network needs by repeating the last row and column, and crops what
    comes out. The permuted input is in channels-last memory order already.

    Args:
        net: image_BCHW to logits_BKHW, or a Network with heads.
        mean, std: per channel, of images in 0..1.
        min_side_px, multiple_px: the least height and width ``net`` takes, and what both must divide by.
        keep_heads: whether evaluation computes the heads too.
    """

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        min_side_px: int = STRIDE_PX,
        multiple_px: int = STRIDE_PX,
        keep_heads: bool = False,
    ):
        super().__init__()
        self.net = net
        self.min_side_px = min_side_px
        self.multiple_px = multiple_px
        self.keep_heads = keep_heads
        shape = (1, len(mean), 1, 1)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(shape)), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        encoder: nn.Module = self.net.encoder  # type: ignore[assignment]
        return encoder

    def forward(self, image_BHWC: Tensor, heads: bool | None = None) -> dict[str, Tensor]:
        """Return float ``logits`` BKHW, and in training the auxiliary outputs.

        Args:
            image_BHWC: uint8.
            heads: whether to compute heads and stages too; None: in training mode, and where heads are kept.

        Returns:
            ``logits`` always. Of the heads: ``presence`` BK logits, ``boundary`` B1HW logits, ``distance`` BKHW in
            -1..1. With deep supervision: ``deep1`` (the finest), ``deep2``, ... BKhw logits, where h and w are the
            stage's size, rounded up at the lower and right edge.
        """
        height, width = image_BHWC.shape[1:3]
        image_BCHW = (self._padded(image_BHWC).permute(0, 3, 1, 2).float() - self.mean) * self.scale
        auxiliary = (self.training or self.keep_heads) if heads is None else heads
        if auxiliary and isinstance(self.net, Network):
            outputs = self.net.outputs(image_BCHW)
        else:
            outputs = {"logits": self.net(image_BCHW)}
        rows, columns = image_BCHW.shape[2:]
        return {
            name: value
            if value.ndim == 2
            else value[..., : -(-height * value.shape[2] // rows), : -(-width * value.shape[3] // columns)]
            for name, value in outputs.items()
        }

    def _padded(self, image_BHWC: Tensor) -> Tensor:
        height, width = (self._taken_px(side) for side in image_BHWC.shape[1:3])
        if height > STRIDE_PX >= width:
            # In bf16 oneDNN 3.12 reads memory that nobody wrote where a convolution's stride leaves one column of
            # several rows: the deepest feature is two columns wide at least.
            width = self._taken_px(STRIDE_PX + 1)
        for axis, wanted in ((1, height), (2, width)):
            side = image_BHWC.shape[axis]
            if wanted > side:
                edge = image_BHWC.narrow(axis, side - 1, 1)
                image_BHWC = torch.cat([image_BHWC, edge.repeat_interleave(wanted - side, dim=axis)], dim=axis)
        return image_BHWC

    def _taken_px(self, side_px: int) -> int:
        """Return the least side that ``net`` takes and that is not less."""
        return max(side_px + -side_px % self.multiple_px, self.min_side_px)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Switch gradient checkpointing of the encoder on or off; the results are the same."""
        set_gradient_checkpointing(self.encoder, on)

    def encoder_stages(self) -> list[list[nn.Parameter]]:
        """Return the encoder's parameters by stage, shallow to deep, each in one of them.

        A stage holds what its feature is made from and shallower features are not; the last also holds what no
        feature is made from. Found by walking back from the features of a small image.
        """
        parameters = list(self.encoder.parameters())
        trainable = [parameter.requires_grad for parameter in parameters]
        modes = [(module, module.training) for module in self.encoder.modules()]
        side = max(2 * self.multiple_px, self.min_side_px)
        self.encoder.requires_grad_(True).eval()
        with torch.enable_grad():
            encoded = self.encoder(self.mean.new_zeros(1, self.mean.shape[1], side, side))
        features = encoded[0] if isinstance(encoded, tuple) else encoded
        seen: set[Any] = set()
        stages = [_parameters_behind(feature.grad_fn, seen) for feature in features]
        for parameter, was in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(was)
        for module, was in modes:
            module.training = was
        stages = [stage for stage in stages if stage]
        used = set().union(*stages)
        stages[-1] |= set(parameters) - used
        return [[parameter for parameter in parameters if parameter in stage] for stage in stages]


def _parameters_behind(node: Any, seen: set[Any]) -> set[nn.Parameter]:
    """Return the parameters that ``node`` of the autograd graph depends on, past nodes in ``seen``, which grows."""
    parameters = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            parameters.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return parameters


def build(spec: MemberSpec) -> MemberModule:
    """Return the member's network with random weights, in training mode; seed torch before for the same ones.

    Raises InputError for unknown names, for a backbone and a decoder that don't go together, and for another number
    of channels than three.
    """
    if not len(spec.mean) == len(spec.std) == spec.in_channels == 3:
        raise InputError(
            f"member {spec.name}: mean and std hold {len(spec.mean)} and {len(spec.std)} values for images of "
            f"{spec.in_channels} channels",
            "images have three channels; give one each per channel",
        )
    net = assemble(
        encoder_name(spec.backbone),
        spec.decoder,
        num_classes=spec.num_classes,
        decoder_width=spec.decoder_width,
        attention=spec.attention,
        context=spec.context,
        heads=spec.heads,
        deep_supervision=spec.deep_supervision,
    )
    return MemberModule(net, spec.mean, spec.std, net.min_side_px, net.multiple_px)


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
    keep_heads: bool = False,
) -> None:
    """Write the member folder: weights.safetensors, member.json, metrics.json, curves.csv.

    ``weights`` is where the encoder started from; ``curves`` holds one row per epoch, all with the same keys.
    ``folder`` must be a temporary one that the caller renames when everything is in it. The predictions of coarser
    stages are left out, and so are heads unless ``keep_heads``. More than eight parameters: each is a part of the
    folder or of member.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = replace(spec, heads=spec.heads if keep_heads else (), deep_supervision=False)
    left_out = ("net.deep.",) if keep_heads else ("net.deep.", "net.heads.")
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
        if not name.startswith(left_out)
    }
    save_file(state, folder / "weights.safetensors")
    member = {
        "format": FORMAT,
        "kind": "network",
        "spec": asdict(spec),
        "encoder_weights": {"source": weights.source, "sha256": weights.sha256},
        "params": params,
        "data_version": data_version,
    }
    (folder / "member.json").write_text(json.dumps(member, indent=2) + "\n")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_curves(folder / "curves.csv", curves)


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
            tuples = {key: tuple(facts["spec"][key]) for key in ("mean", "std", "heads") if key in facts["spec"]}
            spec = MemberSpec(**facts["spec"] | tuples)
            state = load_file(folder / "weights.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as reason:
            raise InputError(
                f"{folder} is no member folder ({type(reason).__name__}: {reason}); train the member again"
            ) from None
        module = build(spec)
        module.keep_heads = bool(spec.heads)
        own = module.state_dict()
        try:
            # Members on plain vision transformers used to hold the classifier too, which is not used.
            module.load_state_dict({name: state[name] for name in state if name in own or UNUSED not in name})
        except RuntimeError as reason:
            raise InputError(
                f"{folder}: weights.safetensors does not fit member.json ({str(reason).splitlines()[0]}); "
                "other versions of timm or segmentation-models-pytorch wrote it: train the member again"
            ) from None
        return cls(spec, module, pick_device(device))

    @property
    def kept_heads(self) -> tuple[str, ...]:
        """The auxiliary heads that the member was saved with."""
        return self.spec.heads

    def predict_probs(self, image_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return class probabilities.

        Args:
            image_BHWC: uint8, any H and W, C as trained (3).

        Returns:
            probs_BKHW float32 at the image's own size; sums to 1 over K. The same input gives the same bits.

        Raises:
            InputError: another dtype, number of axes or channels.
        """
        check_images(image_BHWC)
        probs_BKHW = np.empty((len(image_BHWC), self.spec.num_classes, *image_BHWC.shape[1:3]), np.float32)
        with torch.inference_mode():
            for start, outputs in self._outputs(image_BHWC, heads=False):
                probs = outputs["logits"].float().softmax(dim=1)
                probs_BKHW[start : start + len(probs)] = probs.cpu().numpy()
        return probs_BKHW

    def predict_heads(self, image_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs of the auxiliary heads that were kept, for uint8 images of any H and W.

        Returns:
            ``presence`` BK and ``boundary`` B1HW probabilities, ``distance`` BKHW in -1..1: float32, those of
            spec.heads.

        Raises:
            InputError: another dtype, number of axes or channels, or a member without heads.
        """
        if not self.spec.heads:
            raise InputError(
                f"member {self.spec.name} was saved without heads; train it with aux_heads and keep_heads: true"
            )
        check_images(image_BHWC)
        with torch.inference_mode():
            parts = [outputs for _, outputs in self._outputs(image_BHWC, heads=True)]
            heads = {name: torch.cat([part[name] for part in parts]).float() for name in self.spec.heads}
            return {
                name: (value if name == "distance" else value.sigmoid()).cpu().numpy() for name, value in heads.items()
            }

    def _outputs(self, image_BHWC: NDArray[np.uint8], *, heads: bool) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield the module's outputs for a few images at a time, and the index of the first image."""
        images, height, width = image_BHWC.shape[:3]
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, images, at_once):
            seen_BHWC = enhance_all(
                np.ascontiguousarray(image_BHWC[start : start + at_once]),
                grayscale=self.spec.grayscale,
                clahe=self.spec.clahe,
            )
            batch_BHWC = torch.from_numpy(seen_BHWC).to(self.device, non_blocking=True)
            with autocast(self.dtype, self.device):
                outputs = self.module(batch_BHWC, heads=heads)
            yield start, outputs
