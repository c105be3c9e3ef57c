from __future__ import annotations

import pytest
import torch

from segmill.errors import InputError
from segmill.models.auxiliary import HEADS, check_heads


@pytest.mark.parametrize(
    ("name", "shape"), [("presence", (2, 3)), ("boundary", (2, 1, 16, 24)), ("distance", (2, 3, 16, 24))]
)
def test_what_heads_return(name: str, shape: tuple[int, ...]) -> None:
    output = HEADS[name](8, 3)(torch.randn(2, 8, 4, 6), (16, 24))
    assert output.shape == shape


def test_distances_stay_within_one() -> None:
    head = HEADS["distance"](8, 3)
    torch.nn.init.constant_(head.layers[1].bias, -50.0)
    assert torch.equal(head(torch.randn(1, 8, 4, 6), (8, 12)), -torch.ones(1, 3, 8, 12))


def test_presence_does_not_depend_on_where() -> None:
    head = HEADS["presence"](8, 3)
    feature_BCHW = torch.randn(1, 8, 4, 6)
    torch.testing.assert_close(head(feature_BCHW, (8, 8)), head(feature_BCHW.flip(2, 3), (8, 8)))


def test_unknown_head_names_the_near_miss() -> None:
    check_heads(("presence", "boundary", "distance"))
    with pytest.raises(InputError, match=r"unknown head boundry; did you mean 'boundary'\? \(presence, boundary, di"):
        check_heads(("presence", "boundry"))
