from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from segmill.models.backbones import encoder_name
from segmill.models.gradient_checkpointing import blocks, set_gradient_checkpointing
from segmill.models.networks import Network, assemble


def network(backbone: str, decoder: str = "fpn") -> Network:
    torch.manual_seed(0)
    return assemble(encoder_name(backbone), decoder, num_classes=2)


def one_step(net: Network) -> Tensor:
    torch.manual_seed(1)
    loss = net(torch.randn(2, 3, 64, 64)).square().mean()
    loss.backward()
    return loss.detach()


def saved_bytes(net: Network) -> int:
    """Return what the encoder keeps for the backward pass."""
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        net.encoder(torch.randn(2, 3, 64, 64))
    return saved


@pytest.mark.parametrize(
    ("backbone", "decoder"),
    [
        ("resnet10t", "fpn"),  # batch normalisation
        ("mit_b0", "segformer"),  # stochastic depth
        ("efficientnet-b0", "fpn"),  # both
        pytest.param("vgg11_bn", "fpn", marks=pytest.mark.slow),  # no blocks
        pytest.param("vit_tiny_patch16_224", "dpt", marks=pytest.mark.long),
        pytest.param("swin_tiny_patch4_window7_224", "fpn", marks=pytest.mark.long),
        pytest.param("hrnet_w18_small", "fpn", marks=pytest.mark.long),  # blocks change the lists they are given
        pytest.param("densenet121", "fpn", marks=pytest.mark.long),
    ],
)
def test_gradients_and_statistics_are_those_without_it_for_less_memory(backbone: str, decoder: str) -> None:
    plain = network(backbone, decoder)
    saving = copy.deepcopy(plain)
    set_gradient_checkpointing(saving.encoder, True)
    assert torch.equal(one_step(plain), one_step(saving))
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    for name, buffer in saving.state_dict().items():
        assert torch.equal(buffer, plain.state_dict()[name]), name
    assert saved_bytes(saving) < 0.6 * saved_bytes(plain)


def test_it_can_be_switched_off_and_costs_nothing_without_gradients() -> None:
    net = network("resnet10t")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    net.encoder.model.layer1[0].conv1.register_forward_hook(count)
    set_gradient_checkpointing(net.encoder, True)
    one_step(net)
    assert calls == 2
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 64))
    assert calls == 3
    set_gradient_checkpointing(net.encoder, False)
    one_step(net)
    assert calls == 4


def test_a_copy_computes_with_its_own_weights() -> None:
    net = network("resnet10t").eval()
    set_gradient_checkpointing(net.encoder, True)
    copied = copy.deepcopy(net)
    image_BCHW = torch.randn(1, 3, 64, 64)
    before = copied(image_BCHW)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(copied(image_BCHW), before)


def test_what_the_blocks_are() -> None:
    assert [type(block).__name__ for block in blocks(network("resnet10t").encoder)].count("BasicBlock") == 4
    without = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert blocks(without) == [without]
