"""A packed split in two: what may be shown, and what only the gate sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.sealed import open_part, sealed_part, sealed_rows
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.errors import InputError

GROUPS = {"a": "x", "b": "y", "c": "x", "d": "z"}


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """Samples of 1 x 1 px whose image and mask hold the sample's number."""
    with SplitWriter(tmp_path / "test") as writer:
        for number, (name, group) in enumerate(GROUPS.items()):
            writer.add(Sample(name, group, np.full((1, 1, 3), number, np.uint8), np.full((1, 1), number, np.uint8)))
    return PackedSplit(tmp_path / "test")


def test_each_sample_is_in_one_part_with_its_own_pixels(split: PackedSplit) -> None:
    shown, hidden = open_part(split, ["x"]), sealed_part(split, ["x"])
    assert (shown.ids, shown.groups, shown.indices) == (["b", "d"], ["y", "z"], [1, 3])
    assert (hidden.ids, hidden.groups, hidden.indices) == (["a", "c"], ["x", "x"], [0, 2])
    for part in (shown, hidden):
        assert [int(part.image(index)[0, 0, 0]) for index in range(len(part))] == part.indices
        assert [int(part.mask(index)[0, 0]) for index in range(len(part))] == part.indices
    assert sealed_rows(split.groups, ["x"]).tolist() == [True, False, True, False]


def test_without_sealed_groups_all_is_open(split: PackedSplit) -> None:
    assert open_part(split, ()).ids == split.ids
    with pytest.raises(InputError, match=r"no sample of the packed split is in a group of split\.sealed"):
        sealed_part(split, ["gone"])
