from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segmill.enhancement import enhance_all
from segmill.errors import InputError
from segmill.models.members import Member, MemberModule, MemberSpec, build, check_members, save_member
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
    logits_BKHW = module(image_BHWC)
    assert module.net.image_BCHW.shape == (1, 3, 64, 64)
    assert module.net.image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert logits_BKHW.shape == (1, 3, 33, 40)
    # 51 / 255 = 0.2; (0.2 - 0) / 1, (0.2 - 0.2) / 0.5, (0.2 - 1) / 0.1; the edge is repeated into the padding
    assert module.net.image_BCHW[0, :, -1, -1].tolist() == pytest.approx([0.2, 0.0, -8.0], abs=1e-6)


def test_a_decoder_that_needs_more_pixels_gets_them() -> None:
    module = MemberModule(Seen(), mean=(0.0,) * 3, std=(1.0,) * 3, min_side_px=128)
    assert module(torch.zeros(1, 20, 140, 3, dtype=torch.uint8)).shape == (1, 3, 20, 140)
    assert module.net.image_BCHW.shape == (1, 3, 128, 160)


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


def test_a_member_of_before_there_was_enhancement_loads(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "older")
    facts = json.loads((folder / "member.json").read_text())
    del facts["spec"]["grayscale"], facts["spec"]["clahe"]
    (tmp_path / "older" / "member.json").write_text(json.dumps(facts))
    assert Member.load(tmp_path / "older", "cpu").spec == SPEC


def test_a_damaged_folder_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no member folder"):
        Member.load(tmp_path)
    facts = json.loads((folder / "member.json").read_text())
    facts["spec"]["num_classes"] = 4
    (tmp_path / "member.json").write_text(json.dumps(facts))
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"does not fit member\.json"):
        Member.load(tmp_path)


def test_check_members_tells_all_faults_at_once() -> None:
    good = {"name": "a", "backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none"}
    check_members([good])
    with pytest.raises(InputError) as error:
        check_members([good, {**good, "name": "b", "decoder": "fnp"}, {**good, "name": "c", "weights": "no"}])
    assert [line[:9] for line in str(error.value).splitlines()] == ["member b:", "member c:"]
