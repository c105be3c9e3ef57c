from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import EvalSamples, TrainBatches
from segmill.data.loading.recipes import resolve_recipe
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.errors import InputError

RECIPE = [{"HorizontalFlip": {"p": 0.5}}, {"RandomBrightnessContrast": {"p": 0.8}}]


def write_split(folder: Path, widths: list[int]) -> PackedSplit:
    """Sample i is 4 px high and ``widths[i]`` wide, its image a ramp, its mask all i."""
    with SplitWriter(folder) as writer:
        for i, width in enumerate(widths):
            ramp = np.repeat(np.arange(width, dtype=np.uint8) * 9, 3).reshape(1, width, 3)
            writer.add(Sample(f"s{i}", f"g{i}", np.repeat(ramp, 4, axis=0), np.full((4, width), i, np.uint8)))
    return PackedSplit(folder)


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    return write_split(tmp_path / "split", [8] * 14)


def batches(split: PackedSplit, recipe: object = "none", size=None, **options: object) -> TrainBatches:
    augmenter = Augmenter(resolve_recipe(recipe), size, 3, ignore_id=255)
    return TrainBatches(split, augmenter, **{"batch_size": 4, "seed": 5, **options})


def pixels(made: TrainBatches, epochs: tuple[int, ...] = (0, 1)) -> list[list[tuple[bytes, bytes]]]:
    return [[(b.image.numpy().tobytes(), b.mask.numpy().tobytes()) for b in made.epoch(e)] for e in epochs]


def samples_of(made: TrainBatches, epoch: int) -> list[list[int]]:
    return [batch.mask[:, 0, 0].tolist() for batch in made.epoch(epoch)]


def test_an_epoch_takes_no_sample_twice_and_drops_the_rest(split: PackedSplit) -> None:
    made = batches(split)
    assert made.steps_per_epoch == 3  # 14 // 4
    first, second = samples_of(made, 0), samples_of(made, 1)
    for order in (first, second):
        assert [len(step) for step in order] == [4, 4, 4]
        assert len({i for step in order for i in step}) == 12
    assert first != second
    assert first == samples_of(batches(split), 0)
    assert first != samples_of(batches(split, seed=6), 0)


def test_batches_are_uint8_of_the_stated_shape(split: PackedSplit) -> None:
    batch = next(batches(split, size=(4, 6), world_size=2).epoch(0))
    assert (batch.image.shape, batch.image.dtype) == ((2, 4, 6, 3), torch.uint8)
    assert (batch.mask.shape, batch.mask.dtype) == ((2, 4, 6), torch.uint8)


def test_ranks_share_out_the_same_global_batches(split: PackedSplit) -> None:
    whole = pixels(batches(split, RECIPE))
    parts = [pixels(batches(split, RECIPE, rank=rank, world_size=2)) for rank in (0, 1)]
    joined = [
        [(left[0] + right[0], left[1] + right[1]) for left, right in zip(*epoch, strict=True)]
        for epoch in zip(*parts, strict=True)
    ]
    assert joined == whole


@pytest.mark.parametrize("loader_workers", [1, 4])
def test_loader_workers_change_no_pixel(split: PackedSplit, loader_workers: int) -> None:
    assert pixels(batches(split, RECIPE, loader_workers=loader_workers)) == pixels(batches(split, RECIPE))


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_they_take_no_random_number_of_the_network(split: PackedSplit, loader_workers: int) -> None:
    """Its dropout would be another one in each process's first epoch: after a kill, or without loader workers."""
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    pixels(batches(split, RECIPE, loader_workers=loader_workers))
    assert torch.equal(torch.rand(4), expected)


def test_a_resumed_run_sees_the_same_epoch(split: PackedSplit) -> None:
    assert pixels(batches(split, RECIPE), (4,)) == pixels(batches(split, RECIPE), (2, 3, 4))[2:]


def test_a_small_split_is_gone_through_again_under_other_augmentation(tmp_path: Path) -> None:
    made = batches(write_split(tmp_path, [8] * 3), [{"RandomBrightnessContrast": {"p": 1}}], batch_size=8)
    assert made.steps_per_epoch == 1
    (batch,) = list(made.epoch(0))
    order = batch.mask[:, 0, 0].tolist()
    assert sorted(order[:3]) == [0, 1, 2]
    assert order == (order[:3] * 3)[:8]
    assert not torch.equal(batch.image[0], batch.image[3])


def test_batches_are_made_ahead_in_another_thread_and_errors_come_through(split: PackedSplit) -> None:
    where: list[str] = []

    class Failing(Augmenter):
        def __call__(self, image, mask, *, epoch, sample):
            where.append(threading.current_thread().name)
            if len(where) == 9:
                raise InputError("the ninth sample")
            return image, mask

    made = TrainBatches(split, Failing([], None, 0, ignore_id=255), batch_size=4, seed=0)
    steps = made.epoch(0)
    next(steps)
    next(steps)
    assert threading.current_thread().name not in where
    with pytest.raises(InputError, match="the ninth sample"):
        next(steps)


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_failing_recipe_says_its_one_sentence(split: PackedSplit, loader_workers: int) -> None:
    made = batches(split, [{"RandomCrop": {"height": 5, "width": 5}}], loader_workers=loader_workers)
    with pytest.raises(InputError, match=r"^the recipe fails on s\d+, 4 x 8 px \(.*\); correct it$"):
        next(made.epoch(0))


def test_an_abandoned_epoch_leaves_no_thread(tmp_path: Path) -> None:
    others = set(threading.enumerate())
    steps = batches(write_split(tmp_path / "many", [8] * 250)).epoch(0)  # more than can be prefetched meanwhile
    next(steps)
    (mine,) = set(threading.enumerate()) - others
    steps.close()
    assert not mine.is_alive()


def test_what_cannot_make_batches_is_refused(split: PackedSplit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch_size is 4 with 3 workers; it must be a multiple of 3"):
        batches(split, world_size=3)
    with pytest.raises(InputError, match="holds no samples"):
        batches(write_split(tmp_path / "empty", []))
    ragged = write_split(tmp_path / "ragged", [8, 9])
    with pytest.raises(InputError, match=r"differ in size \(\(4, 8\) and \(4, 9\) px"):
        batches(ragged)
    assert next(batches(ragged, size=(4, 8)).epoch(0)).image.shape == (4, 4, 8, 3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_eval_sample_is_on_one_rank_once(tmp_path: Path, world_size: int) -> None:
    split = write_split(tmp_path, [8] * 7)
    ranks = [EvalSamples(split, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [index for rank in ranks for indices, _, _ in rank.batches(2) for index in indices]
    assert sorted(seen) == list(range(7))
    assert sum(len(rank) for rank in ranks) == 7


def test_eval_batches_hold_one_size_each(tmp_path: Path) -> None:
    split = write_split(tmp_path, [8, 8, 8, 9, 8])
    made = list(EvalSamples(split).batches(2))
    assert [indices for indices, _, _ in made] == [[0, 1], [2], [3], [4]]
    assert [images.shape for _, images, _ in made] == [(2, 4, 8, 3), (1, 4, 8, 3), (1, 4, 9, 3), (1, 4, 8, 3)]
    for indices, images, masks in made:
        np.testing.assert_array_equal(images, np.stack([split.image(i) for i in indices]))
        np.testing.assert_array_equal(masks[:, 0, 0], indices)


def test_an_order_is_shuffled_once_per_epoch(split: PackedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[list[int]] = []
    real = np.random.default_rng

    def note(seed: object) -> np.random.Generator:
        if isinstance(seed, list):
            seeds.append(seed)
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", note)
    made = batches(split)
    assert samples_of(made, 1) != samples_of(made, 0)
    assert seeds == [[5, 1], [5, 0]]
