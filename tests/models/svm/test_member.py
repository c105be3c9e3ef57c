from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics.pairwise import rbf_kernel

from segmill.enhancement import enhance_all
from segmill.errors import InputError
from segmill.models.loading import load_member
from segmill.models.svm.features import FrozenBackbone, pixel_features
from segmill.models.svm.member import KernelMachine, SvmMember, SvmSpec, check_svm, save_svm, smoothed
from segmill.models.weights import Weights

SPEC = SvmSpec(
    "a",
    num_classes=4,
    classes=(0, 3),
    channels={"colour": (0, 5), "texture": (0, 1, 3, 20, 30), "spatial": (1,)},
    components=7,
    gamma=0.05,
)
NOWHERE = Weights("none", None, None)
IMAGE_BHWC = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), np.uint8)


def machine(spec: SvmSpec, cnn: FrozenBackbone | None = None) -> KernelMachine:
    torch.manual_seed(0)
    features = sum(map(len, spec.channels.values()))
    made = KernelMachine(features, spec.components, len(spec.classes), spec.gamma, cnn)
    made.centre = torch.rand(features)
    made.scale = 1 + torch.rand(features)
    made.landmarks = torch.randn(spec.components, features)
    made.coefficients = torch.randn(len(spec.classes), spec.components)
    made.intercept = torch.randn(len(spec.classes))
    return made


def save(folder: Path, spec: SvmSpec, cnn: FrozenBackbone | None = None, weights: Weights = NOWHERE) -> Path:
    save_svm(
        folder, machine(spec, cnn), spec, weights=weights, params={"c": 1}, data_version="v1",
        metrics={"val_miou": 0.5},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("svm"), SPEC)


def test_the_machine_is_sklearns_rbf_kernel_and_a_linear_layer() -> None:
    made = machine(SPEC)
    features_PC = torch.rand(3000, 8) * 2
    points_PC = np.clip((features_PC.numpy() - made.centre.numpy()) * made.scale.numpy(), -5, 5)
    kernel_PM = rbf_kernel(points_PC, made.landmarks.numpy(), gamma=0.05)
    np.testing.assert_allclose(made.similarities(features_PC).numpy(), kernel_PM, atol=1e-5)
    logits_PK = kernel_PM @ made.coefficients.numpy().T + made.intercept.numpy()
    np.testing.assert_allclose(made(features_PC).numpy(), logits_PK, atol=1e-4)


def test_a_feature_far_out_is_no_stranger_than_five_deviations() -> None:
    made = machine(SPEC)
    far, farther = made.centre + 5 / made.scale, made.centre + 500 / made.scale
    torch.testing.assert_close(made(far[None]), made(farther[None]))


def test_the_folder_alone_rebuilds_the_member(folder: Path) -> None:
    member = load_member(folder)
    assert isinstance(member, SvmMember) and member.spec == SPEC
    probs_BKHW = member.predict_probs(IMAGE_BHWC)
    assert probs_BKHW.shape == (2, 4, 45, 70) and probs_BKHW.dtype == np.float32
    np.testing.assert_allclose(probs_BKHW.sum(axis=1), 1, rtol=1e-5)
    assert not probs_BKHW[:, 1:3].any() and probs_BKHW[:, [0, 3]].std() > 0.01
    features_CHW = pixel_features(IMAGE_BHWC[1], SPEC.channels)
    logits = machine(SPEC)(torch.from_numpy(features_CHW[:, 7, 9][None]))
    np.testing.assert_allclose(probs_BKHW[1, [0, 3], 7, 9], logits.softmax(1)[0].numpy(), atol=1e-5)


def test_the_same_image_gives_the_same_bits_wherever_it_lies_in_memory(folder: Path) -> None:
    member = SvmMember.load(folder, "cpu")
    expected = member.predict_probs(IMAGE_BHWC[:1])
    np.testing.assert_array_equal(member.predict_probs(IMAGE_BHWC)[:1], expected)
    for offset in range(1, 30):
        memory = np.empty(IMAGE_BHWC[0].nbytes + 64, np.uint8)
        moved = memory[offset : offset + IMAGE_BHWC[0].nbytes].reshape(IMAGE_BHWC[:1].shape)
        moved[...] = IMAGE_BHWC[:1]
        np.testing.assert_array_equal(member.predict_probs(moved), expected)


def test_what_the_folder_says(folder: Path) -> None:
    facts = json.loads((folder / "member.json").read_text())
    assert (facts["kind"], facts["params"], facts["data_version"]) == ("svm", {"c": 1}, "v1")
    assert facts["encoder_weights"] == {"source": "none", "sha256": None}
    assert sorted(path.name for path in folder.iterdir()) == ["member.json", "metrics.json", "weights.safetensors"]


def test_the_frozen_backbone_is_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(
        SPEC, channels={"spatial": (0,), "cnn": (0, 13)}, backbone="mobilenetv3_small_050", mean=(0.1, 0.2, 0.3)
    )
    cnn = FrozenBackbone("mobilenetv3_small_050", spec.mean, spec.std)
    save(tmp_path, spec, cnn, Weights("file:w", "ab", None))
    before = SvmMember(spec, machine(spec, cnn), torch.device("cpu")).predict_probs(IMAGE_BHWC)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("went online"))
    np.testing.assert_array_equal(SvmMember.load(tmp_path, "cpu").predict_probs(IMAGE_BHWC), before)


def test_images_of_another_type_or_shape_are_refused(folder: Path) -> None:
    member = SvmMember.load(folder, "cpu")
    for image in (IMAGE_BHWC.astype(np.float32), IMAGE_BHWC[0], IMAGE_BHWC[..., :1]):
        with pytest.raises(InputError, match=r"a batch is uint8 of shape \(images, height, width, 3\)"):
            member.predict_probs(image)


def test_what_was_done_to_its_training_images_is_done_to_all_it_predicts(tmp_path: Path) -> None:
    plain = SvmMember(SPEC, machine(SPEC), torch.device("cpu"))
    enhancing = SvmMember(replace(SPEC, grayscale=True, clahe=3.0), machine(SPEC), torch.device("cpu"))
    seen = enhance_all(IMAGE_BHWC, grayscale=True, clahe=3.0)
    np.testing.assert_array_equal(enhancing.predict_probs(IMAGE_BHWC), plain.predict_probs(seen))
    assert (plain.predict_probs(IMAGE_BHWC) != plain.predict_probs(seen)).any()


def test_smoothing_removes_a_speck_and_keeps_an_edge() -> None:
    image_HWC = np.zeros((40, 40, 3), np.uint8)
    image_HWC[:, 20:] = 255
    right_HW = np.zeros((40, 40), np.float32)
    right_HW[:, 20:] = 1
    right_HW[10, 8] = 1
    result = smoothed(np.stack([1 - right_HW, right_HW]), image_HWC, 2)
    assert result[1, 10, 8] < 0.1
    assert result[1, :, 22:].min() > 0.95 and result[1, 20:, :18].max() < 0.05
    np.testing.assert_allclose(result.sum(axis=0), 1, rtol=1e-5)
    assert smoothed(result, image_HWC, 0) is result


def test_smoothing_without_an_edge_is_two_box_filters() -> None:
    probs_HW = np.random.default_rng(0).random((30, 30), np.float32)
    result = smoothed(np.stack([probs_HW, 1 - probs_HW]), np.full((30, 30, 3), 90, np.uint8), 2)
    twice = cv2.blur(cv2.blur(probs_HW, (5, 5)), (5, 5))
    np.testing.assert_allclose(result[0, 4:-4, 4:-4], twice[4:-4, 4:-4], atol=1e-5)


def test_a_damaged_folder_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no classical member's folder"):
        SvmMember.load(tmp_path)
    shutil.copytree(folder, tmp_path / "damaged")
    facts = json.loads((folder / "member.json").read_text())
    facts["spec"]["components"] = 8
    (tmp_path / "damaged" / "member.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"does not fit member\.json"):
        SvmMember.load(tmp_path / "damaged")


def test_what_can_not_be_fitted_is_said_beforehand(tmp_path: Path) -> None:
    assert check_svm(["colour"], None, "none") == NOWHERE
    with pytest.raises(InputError, match="did you mean 'texture'"):
        check_svm(["textures"], None, "none")
    for backbone, weights in ((None, "timm"), ("resnet18", "none")):
        with pytest.raises(InputError, match="random ones are useless"):
            check_svm(["cnn"], backbone, weights)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="don't fit the backbone"):
        check_svm(["cnn"], "mobilenetv3_small_050", f"file:{tmp_path}/w.safetensors")
