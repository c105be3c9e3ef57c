from __future__ import annotations

import pytest

from segmill.errors import InputError
from segmill.models.backbones import encoder_name, is_plain_vit, pretrained_normalisation, size_options


def test_timm_comes_first_then_smp() -> None:
    assert encoder_name("resnet18") == "tu-resnet18"
    assert encoder_name("mit_b0") == "mit_b0"


def test_unknown_backbone_names_the_near_miss() -> None:
    with pytest.raises(InputError, match="unknown backbone resnet_18; did you mean 'resnet18'"):
        encoder_name("resnet_18")


def test_a_tag_belongs_to_weights() -> None:
    with pytest.raises(InputError, match="write backbone: resnet18 and weights: timm:a1_in1k"):
        encoder_name("resnet18.a1_in1k")


def test_normalisation_is_what_the_weights_were_trained_with() -> None:
    assert pretrained_normalisation("tf_efficientnet_lite0") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pretrained_normalisation("inceptionv4") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # smp's own
    assert pretrained_normalisation("mit_b0")[0] == (0.485, 0.456, 0.406)


def test_the_xception_with_padding_is_taken() -> None:
    assert encoder_name("xception") == "xception"
    assert encoder_name("legacy_xception") == "tu-legacy_xception"


def test_what_transformers_are_told() -> None:
    assert size_options("tu-swinv2_tiny_window8_256") == {"strict_img_size": False}
    assert size_options("tu-vit_small_patch16_dinov3") == {"dynamic_img_size": True}
    assert size_options("tu-convnext_atto") == size_options("mit_b0") == {}
    assert is_plain_vit("tu-deit3_small_patch16_224") and not is_plain_vit("tu-swin_tiny_patch4_window7_224")
