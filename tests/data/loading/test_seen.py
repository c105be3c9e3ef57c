from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.loading.extras import make_extras
from segmill.data.loading.recipes import settle_policy
from segmill.data.loading.seen import TrainingView
from segmill.data.packing.packed import PackedSplit, PackInfo
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.errors import InputError

SIZE = (32, 48)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine train samples with a rare square, packed and augmented; two extra ones."""
    root, rng = tmp_path_factory.mktemp("seen"), np.random.default_rng(0)
    for split, count in {"train": 9, "val": 1, "test": 1}.items():
        with SplitWriter(root / "packed" / split) as writer:
            for number in range(count):
                mask = np.zeros(SIZE, np.uint8)
                mask[10:15, 5 + 3 * number : 10 + 3 * number] = 1
                image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                writer.add(Sample(f"{split}_{number}", f"g{number}", image, mask))
    pixels = (9 * (SIZE[0] * SIZE[1] - 25), 9 * 25)
    info = PackInfo(
        "squares", ("floor", "square"), ("#000000", "#ff0000"), 255, SIZE, (0.5,) * 3, (0.3,) * 3, pixels,
        {"train": 9, "val": 1, "test": 1},
    )  # fmt: skip
    (root / "packed" / "pack.json").write_text(json.dumps(asdict(info)))
    (root / "augmented").mkdir()
    made = make_extras(
        root / "packed", root / "augmented" / "extra",
        copy_paste=0.22, oversample=0.0, rare_below=0.05, seed=0, mirror=True,
    )  # fmt: skip
    assert made == {"copy_paste": 2, "balance": 0}
    replace(settle_policy("driving"), extra=made).write(root / "augmented" / "recipe.json")
    return root


def view_of(root: Path, **own: int) -> TrainingView:
    return TrainingView(root / "packed", root / "augmented", **{"seed": 7, "batch_size": 4, **own})


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_what_is_seen_is_what_the_loader_made(prepared: Path, loader_workers: int) -> None:
    view = view_of(prepared)
    split = PackedSplit(prepared / "packed" / "train", prepared / "augmented" / "extra")
    augmenter = Augmenter(settle_policy("driving").transforms, SIZE, 7, ignore_id=255)
    batches = TrainBatches(split, augmenter, batch_size=4, seed=7, loader_workers=loader_workers)
    for epoch in (0, 3):
        made = {
            (image.numpy().tobytes(), mask.numpy().tobytes())
            for batch in batches.epoch(epoch)
            for image, mask in zip(batch.image, batch.mask, strict=True)
        }
        taken = [index for index in range(11) if view.takes(index, epoch)]
        seen = {tuple(pixels.tobytes() for pixels in view.seen(index, epoch)) for index in taken}
        assert len(taken) == 8 and seen == made
    assert (
        view.seen(0, 0)[0].tobytes()
        != view.seen(0, 3)[0].tobytes()
        != view_of(prepared, seed=8).seen(0, 3)[0].tobytes()
    )


def test_originals_and_extra_samples_are_told_apart(prepared: Path) -> None:
    view = view_of(prepared)
    assert view.originals == 9 and view.index("train_4") == 4
    assert [view.index(origin.id) >= 9 for origin in view.origins()] == [True, True]
    packed = PackedSplit(prepared / "packed" / "train")
    np.testing.assert_array_equal(view.original(4)[0], packed.image(4))
    np.testing.assert_array_equal(view.original(4)[1], packed.mask(4))


def test_a_batch_larger_than_the_split_takes_everything(prepared: Path) -> None:
    assert all(view_of(prepared, batch_size=32).takes(index, 0) for index in range(11))


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ("train_44", r"train has no sample 'train_44'; did you mean 'train_4'\?"),
        ("val_0", "val_0 is in val: no training ever sees it; name a sample of train"),
        ("zzz", "train has no sample 'zzz'$"),
    ],
)
def test_an_unknown_sample_is_named(prepared: Path, sample: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        view_of(prepared).index(sample)
