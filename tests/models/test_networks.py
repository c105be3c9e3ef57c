from __future__ import annotations

import copy

import pytest
import torch

from segmill.errors import InputError
from segmill.models.backbones import encoder_name
from segmill.models.decoders import DECODERS
from segmill.models.networks import Network, assemble

BACKBONE = "mobilenetv3_small_050"
IMAGE_BCHW = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))


def network(decoder: str = "fpn", backbone: str = BACKBONE, **additions: object) -> Network:
    torch.manual_seed(0)
    return assemble(encoder_name(backbone), decoder, num_classes=3, **additions)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_every_addition(decoder: str) -> None:
    heads = ("presence", "boundary", "distance")
    net = network(decoder, attention="se", context="nonlocal", heads=heads, deep_supervision=decoder != "pspnet")
    outputs = net.outputs(IMAGE_BCHW)
    deep = [name for name in outputs if name.startswith("deep")]
    assert list(outputs) == ["logits", *heads, *deep]
    assert outputs["logits"].shape == (2, 3, 128, 160)
    assert outputs["boundary"].shape == (2, 1, 128, 160)
    areas = [outputs[name].shape[2] * outputs[name].shape[3] for name in deep]
    assert areas == sorted(areas, reverse=True) and all(area < 128 * 160 for area in areas)
    torch.stack([output.float().square().mean() for output in outputs.values()]).sum().backward()
    additions = [net.context, net.attention, net.heads, net.deep]
    unmoved = [name for part in additions for name, p in part.named_parameters() if p.grad is None]
    assert not unmoved
    assert len(deep) == {"pspnet": 0, "deeplabv3plus": 1, "fcn": 2, "fpn": 3, "unet": 4}.get(decoder, len(deep))


@pytest.mark.parametrize("decoder", sorted(set(DECODERS) - {"linknet"}))
def test_a_narrower_decoder_is_smaller(decoder: str) -> None:
    narrow = network(decoder, decoder_width=0.5, attention="se")
    assert narrow(IMAGE_BCHW).shape == (2, 3, 128, 160)
    sizes = [sum(p.numel() for p in net.decoder.parameters()) for net in (narrow, network(decoder, attention="se"))]
    assert sizes[0] < 0.7 * sizes[1]


def test_coarser_stages_of_a_unet_predict_at_their_own_sizes() -> None:
    outputs = network("unet", deep_supervision=True).outputs(IMAGE_BCHW)
    assert [tuple(outputs[f"deep{number}"].shape[2:]) for number in (1, 2, 3, 4)] == [
        (64, 80),
        (32, 40),
        (16, 20),
        (8, 10),
    ]


def test_heads_are_not_computed_unless_asked_for() -> None:
    net = network(heads=("boundary",), deep_supervision=True).eval()
    net.heads["boundary"].register_forward_hook(lambda *_: pytest.fail("computed a head"))
    net.deep[0].register_forward_hook(lambda *_: pytest.fail("computed a coarser stage"))
    assert net(IMAGE_BCHW).shape == (2, 3, 128, 160)
    assert net._staged is None


def test_additions_leave_the_plain_part_as_it_is() -> None:
    plain = network("unet").eval()
    rich = network("unet", attention="cbam", context="lstm", heads=("distance",), deep_supervision=True)
    own = rich.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(own[name], tensor), name
    with torch.inference_mode():
        expected = plain(IMAGE_BCHW)
        reading = network("unet", context="gru", heads=("boundary",), deep_supervision=True).eval()
        assert torch.equal(reading(IMAGE_BCHW), expected)
        assert not torch.equal(rich.eval()(IMAGE_BCHW), expected)


def test_attention_follows_each_stage() -> None:
    net = network("fpn", attention="se").eval()
    seen: list[torch.Size] = []
    for attention in net.attention:
        attention.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    net(IMAGE_BCHW)
    assert [tuple(shape) for shape in seen] == [(2, 256, 4, 5), (2, 256, 8, 10), (2, 256, 16, 20), (2, 256, 32, 40)]


def test_a_copy_attends_with_its_own_weights() -> None:
    net = network("fpn", attention="se", deep_supervision=True).eval()
    copied = copy.deepcopy(net)
    with torch.inference_mode():
        before = copied.outputs(IMAGE_BCHW)
        for parameter in net.parameters():
            torch.nn.init.zeros_(parameter)
        after = copied.outputs(IMAGE_BCHW)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("backbone", "decoder", "multiple_px", "min_side_px"),
    [
        ("resnet10t", "fpn", 32, 32),
        (BACKBONE, "pan", 32, 128),
        ("vit_tiny_patch16_224", "dpt", 32, 32),
        ("vit_tiny_patch16_224", "fcn", 32, 32),
        pytest.param("vit_small_patch14_dinov2", "dpt", 28, 28, marks=pytest.mark.slow),
        pytest.param("inception_v4", "unet", 32, 128, marks=pytest.mark.slow),
        pytest.param("maxvit_rmlp_pico_rw_256", "fpn", 256, 256, marks=pytest.mark.slow),
    ],
)
def test_networks_know_the_sizes_they_take(backbone: str, decoder: str, multiple_px: int, min_side_px: int) -> None:
    net = network(decoder, backbone).eval()
    assert (net.multiple_px, net.min_side_px) == (multiple_px, min_side_px)
    with torch.inference_mode():
        size_px = (min_side_px, min_side_px + 3 * multiple_px)
        assert net(torch.zeros(1, 3, *size_px)).shape == (1, 3, *size_px)


def test_swin_takes_sizes_that_are_no_multiple_of_its_window() -> None:
    net = network("fpn", "swin_tiny_patch4_window7_224").eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 32, 96)).shape == (1, 3, 32, 96)


@pytest.mark.parametrize(
    ("backbone", "decoder", "reason"),
    [
        ("vgg11", "deeplabv3plus", "dilates the last stage to keep it at 1/16, and vgg11 can't be dilated; choose fpn"),
        ("ghostnet_100", "pan", "pan dilates the last stage to keep it at 1/16, and ghostnet_100 can't be dilated"),
        ("xception", "deeplabv3plus", "xception can't be dilated"),
        ("vit_tiny_patch16_224", "unet", "is a plain vision transformer, whose features all have one scale, and unet"),
        ("mit_b0", "dpt", "dpt takes timm's backbones, vision transformers above all, and mit_b0 is"),
        ("mit_b0", "unetplusplus", "does not offer unetplusplus with its own mit backbones; choose segformer"),
        pytest.param(
            "legacy_xception",
            "fpn",
            "the features of legacy_xception are 256, 125, 63, 32, 16, 8 px wide at 256 px, not halves",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(backbone: str, decoder: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"backbone {backbone} and decoder {decoder} don't go together: .*{reason}"):
        network(decoder, backbone)


def test_deep_supervision_needs_coarser_stages() -> None:
    with pytest.raises(InputError, match="decoder pspnet has no stage coarser than its last to supervise"):
        network("pspnet", deep_supervision=True)


@pytest.mark.parametrize("addition", [{"attention": "sce"}, {"context": "grru"}, {"heads": ("borders",)}])
def test_unknown_additions_are_refused(addition: dict[str, object]) -> None:
    with pytest.raises(InputError, match="unknown"):
        network(**addition)
