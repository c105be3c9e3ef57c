from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segmill.errors import InputError
from segmill.models.members import MemberSpec, build, save_member
from segmill.models.weights import Weights
from segmill.training.warm_start import adopt, begin_with

SPEC = MemberSpec("a", "mobilenetv3_small_050", "fpn", 3, mean=(0.1, 0.2, 0.3), heads=("boundary",))


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member folder, saved without its head as those that serve are."""
    folder = tmp_path_factory.mktemp("champion")
    torch.manual_seed(1)
    start = Weights("none", None, None)
    save_member(folder, build(SPEC), SPEC, weights=start, params={}, data_version="", metrics={}, curves=[])
    return folder


def test_it_takes_over_weights_and_normalisation_and_says_so(champion: Path) -> None:
    spec = adopt(replace(SPEC, mean=(0.5,) * 3, std=(0.5,) * 3, deep_supervision=True), champion)
    assert spec == replace(SPEC, deep_supervision=True)
    torch.manual_seed(2)
    module = build(spec)
    heads = {name: tensor.clone() for name, tensor in module.state_dict().items() if name.startswith("net.heads.")}
    start = begin_with(module, champion, "champion:m/3")
    theirs = load_file(champion / "weights.safetensors")
    mine = module.state_dict()
    assert heads and all(torch.equal(mine[name], tensor) for name, tensor in (theirs | heads).items())
    sha256 = hashlib.sha256((champion / "weights.safetensors").read_bytes()).hexdigest()
    assert (start.source, start.sha256) == ("champion:m/3", sha256)


@pytest.mark.parametrize(
    "other",
    [
        {"backbone": "resnet18"},
        {"decoder": "unet"},
        {"num_classes": 4},
        {"decoder_width": 0.5},
        {"attention": "se"},
        {"context": "gru"},
    ],
)
def test_another_network_is_none_to_begin_with(champion: Path, other: dict[str, object]) -> None:
    assert adopt(replace(SPEC, **other), champion) is None  # type: ignore[arg-type]


def test_weights_that_lack_something_are_refused(champion: Path, tmp_path: Path) -> None:
    state = load_file(champion / "weights.safetensors")
    lost = next(name for name in state if name.endswith("weight"))
    save_file({name: tensor for name, tensor in state.items() if name != lost}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=f"the champion's weights lack {lost}.*set train.warm_start to false"):
        begin_with(build(SPEC), tmp_path, "champion:m/3")
