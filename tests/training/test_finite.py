from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segmill.data.packing.packed import PackedSplit
from segmill.training.clock import Rank
from segmill.training.finite import CHECK_EVERY, LossWatch, MemberFailed
from tests.training.conftest import batches


def test_the_mean_of_what_is_finite(split: PackedSplit) -> None:
    watch = LossWatch("tiny", batches(split), 0, Rank(), None)
    for value in (1.0, 2.0, 6.0):
        watch.note(torch.tensor(value), 0.1)
    assert watch.mean() == 3.0


def test_the_offending_batch_is_kept(split: PackedSplit, tmp_path: Path) -> None:
    made = batches(split)
    kept = tmp_path / "failures" / "tiny.npz"
    watch = LossWatch("tiny", made, 2, Rank(), kept)
    for value, lr in ((1.0, 0.1), (torch.inf, 0.2), (torch.nan, 0.3)):
        watch.note(torch.tensor(value), lr)
    with pytest.raises(
        MemberFailed, match=r"the loss is inf at epoch 3, step 2 \(learning rate 0.2\).*tiny.npz; lower"
    ):
        watch.mean()
    found = np.load(kept)
    ids, batch = made.batch(2, 1)
    assert found["ids"].tolist() == ids == [split.ids[index] for index in made.samples(2)[4:8]]
    np.testing.assert_array_equal(found["image_BHWC"], batch.image.numpy())
    np.testing.assert_array_equal(found["mask_BHW"], list(made.epoch(2))[1].mask.numpy())
    assert (found["lr"], found["epoch"], found["step"]) == (0.2, 3, 2)


def test_it_looks_now_and_then(split: PackedSplit) -> None:
    watch = LossWatch("tiny", batches(split), 0, Rank(), None)
    for _ in range(CHECK_EVERY - 1):
        watch.note(torch.tensor(torch.nan), 0.1)
    with pytest.raises(MemberFailed, match="step 1 "):
        watch.note(torch.tensor(1.0), 0.1)
