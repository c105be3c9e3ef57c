"""One backbone of each family, as small as it comes, through all that befalls a member."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segmill.models.loading import load_member
from segmill.models.members import Member, MemberSpec, build, save_member
from segmill.models.precision import autocast, autocast_dtype
from segmill.models.weights import Weights

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        ("vgg11_bn", "unet"),
        ("resnet10t", "deeplabv3plus"),
        pytest.param("resnext50_32x4d", "fpn", marks=pytest.mark.long),
        pytest.param("wide_resnet50_2", "pspnet", marks=pytest.mark.long),
        pytest.param("inceptionv4", "fpn", marks=pytest.mark.long),
        pytest.param("inceptionresnetv2", "linknet", marks=pytest.mark.long),
        pytest.param("xception", "fpn", marks=pytest.mark.long),
        ("mobilenetv2_035", "pan"),
        ("tf_efficientnet_lite0", "fpn"),
        pytest.param("efficientnet-b0", "manet", marks=pytest.mark.long),
        ("convnext_atto", "upernet"),
        pytest.param("regnetx_002", "unet", marks=pytest.mark.long),
        pytest.param("swin_tiny_patch4_window7_224", "upernet", marks=pytest.mark.long),
        ("mit_b0", "segformer"),
        pytest.param("vit_tiny_patch16_224", "fcn", marks=pytest.mark.long),
        pytest.param("vit_small_patch14_dinov2", "dpt", marks=pytest.mark.long),
    ],
)
def test_a_family_trains_and_predicts_the_same_from_its_folder(backbone: str, decoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = MemberSpec("a", backbone, decoder, num_classes=2)
    module = build(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    image_BHWC = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), np.uint8)
    mask_BHW = torch.from_numpy((image_BHWC[..., 0] > 127).astype(np.int64))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(2):
        with autocast(autocast_dtype("auto", CPU), CPU):
            logits_BKHW = module(torch.from_numpy(image_BHWC))["logits"]
        loss = F.cross_entropy(logits_BKHW.float(), mask_BHW)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite()
    moved = [
        name
        for name, tensor in module.encoder.named_parameters()
        if not torch.equal(tensor, before[f"net.encoder.{name}"])
    ]
    assert len(moved) > 0.9 * len(list(module.encoder.parameters()))

    expected = Member(spec, module, CPU).predict_probs(image_BHWC)
    save_member(
        tmp_path,
        module,
        spec,
        weights=Weights("none", None, None),
        params={},
        data_version="v1",
        metrics={},
        curves=[],
    )
    np.testing.assert_array_equal(load_member(tmp_path).predict_probs(image_BHWC), expected)
