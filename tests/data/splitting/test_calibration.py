"""Calibration groups have samples, are not sealed, and leave others in each split."""

from __future__ import annotations

import pytest

from segmill.data.splitting.splits import refuse_calibration
from segmill.errors import InputError

SPLIT_OF = {"rain": "test", "fog": "test", "sun": "train", "dusk": "train", "snow": "val"}


@pytest.mark.parametrize("groups", [[], ["rain"], ["sun", "rain", "rain"]])
def test_groups_of_any_split_may_calibrate(groups: list[str]) -> None:
    refuse_calibration(groups, ["fog"] if "rain" not in groups else [], SPLIT_OF)


@pytest.mark.parametrize(
    ("groups", "sealed", "said"),
    [
        (["rian"], [], r"names group 'rian', which no sample has.*did you mean 'rain'.*`segmill data add`"),
        (["rain"], ["rain"], r"'rain', which split.sealed names too"),
        (["snow"], [], r"names every group of val"),
        (["rain"], ["fog"], r"names every group of test; leave at least one that is not sealed"),
        (["sun", "dusk"], [], r"names every group of train"),
    ],
)
def test_others_are_refused_with_what_to_do(groups: list[str], sealed: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_calibration(groups, sealed, SPLIT_OF)
