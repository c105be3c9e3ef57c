"""Sealed groups are in test, are never moved there, and leave something to show."""

from __future__ import annotations

import pytest

from segmill.data.splitting.splits import refuse_sealed
from segmill.errors import InputError

SPLIT_OF = {"rain": "test", "fog": "test", "sun": "train", "snow": "val"}


@pytest.mark.parametrize("sealed", [[], ["rain"], ["rain", "rain"]])
def test_groups_of_test_may_be_sealed(sealed: list[str]) -> None:
    refuse_sealed(sealed, SPLIT_OF)


@pytest.mark.parametrize(
    ("sealed", "said"),
    [
        (["rian"], r"names group 'rian', which no sample has.*did you mean 'rain'.*`segmill data add`"),
        (["rain", "sun"], r"names group 'sun', which is in train already; seal groups of test \(fog, rain\), or "),
        (["snow"], r"which is in val already"),
        (["rain", "fog"], r"names every group of test.*leave at least one out"),
    ],
)
def test_others_are_refused_with_what_to_do(sealed: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_sealed(sealed, SPLIT_OF)
