from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.enhancement import enhance
from segmill.models.svm.features import all_channels, pixel_features
from segmill.training.svm.pixels import Draw, Pixels, distinct_channels, draw_pixels, hold_out, with_only

COLOUR = all_channels(["colour"])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PackedSplit:
    """40 images of 20 x 30 px in 10 groups: class 0, a column of class 1, an unlabelled row; two have class 2."""
    folder = tmp_path_factory.mktemp("split")
    generator = np.random.default_rng(0)
    with SplitWriter(folder) as writer:
        for number in range(40):
            mask = np.zeros((20, 30), np.uint8)
            mask[:, 3] = 1
            mask[5] = 255
            if number in (11, 33):
                mask[10, 10:14] = 2
            image = generator.integers(0, 256, (20, 30, 3), np.uint8)
            writer.add(Sample(f"s{number:02d}", f"g{number // 4}", image, mask))
    return PackedSplit(folder)


def sample(labels: list[int], images: list[int]) -> Pixels:
    features_PC = torch.arange(float(len(labels)))[:, None]
    return Pixels(features_PC, np.array(labels), np.array(images), np.ones(len(labels)))


def test_a_draw_takes_classes_by_the_root_of_their_frequency(split: PackedSplit) -> None:
    draw = Draw(split, 4000, num_classes=3, seed=0)
    # 19 labelled rows: 29 x 19 px of class 0 and 19 of class 1 per image, 8 of class 2 in all
    assert draw.class_pixels.tolist() == [40 * 29 * 19 - 8, 40 * 19, 8]
    assert len(draw.images) == 4000 // 256
    pixels = draw_pixels(split, draw, COLOUR, None)
    drawn_K = np.bincount(pixels.labels_P)
    # Of class 0 and 1 the images hold 29 : 1; the root of it is 5.4 : 1, more than class 1 has: all of it is taken.
    assert drawn_K[1] == 15 * 19 and drawn_K[2] == 8
    assert 2000 < drawn_K[0] < 4000


def test_images_of_a_rare_class_are_drawn(split: PackedSplit) -> None:
    for seed in range(5):
        assert {11, 33} <= set(Draw(split, 1024, num_classes=3, seed=seed).images.tolist())


def test_weights_give_the_sample_the_frequencies_of_the_split(split: PackedSplit) -> None:
    draw = Draw(split, 4000, num_classes=3, seed=0)
    pixels = draw_pixels(split, draw, COLOUR, None)
    share_K = np.bincount(pixels.labels_P, pixels.weights_P) / len(pixels)
    np.testing.assert_allclose(share_K, draw.class_pixels / draw.class_pixels.sum())


def test_pixels_carry_their_own_features_and_labels(split: PackedSplit) -> None:
    pixels = draw_pixels(split, Draw(split, 3000, num_classes=3, seed=0), COLOUR, None)
    again = draw_pixels(split, Draw(split, 3000, num_classes=3, seed=0), COLOUR, None)
    torch.testing.assert_close(pixels.features_PC, again.features_PC, rtol=0, atol=0)
    other = draw_pixels(split, Draw(split, 3000, num_classes=3, seed=1), COLOUR, None)
    assert pixels.image_P.tolist() != other.image_P.tolist()
    index = int(pixels.image_P[0])
    features_CHW = pixel_features(split.image(index), COLOUR)
    for row in range(5):
        there_HW = (features_CHW == pixels.features_PC[row].numpy()[:, None, None]).all(axis=0)
        assert there_HW.any() and (split.mask(index)[there_HW] == pixels.labels_P[row]).any()


def test_images_are_enhanced_as_they_are_in_prediction(split: PackedSplit) -> None:
    draw = Draw(split, 300, num_classes=3, seed=0)
    grey = draw_pixels(split, draw, {"colour": (0, 1, 2)}, None, grayscale=True, clahe=2.0)
    index = int(grey.image_P[0])
    places, _ = draw.places(index)
    seen_HWC = enhance(split.image(index), grayscale=True, clahe=2.0)
    expected = seen_HWC.reshape(-1, 3)[places].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(grey.features_PC[: len(places)].numpy(), expected)


def test_drawing_stops_when_its_time_is_up(split: PackedSplit) -> None:
    told: list[tuple[int, int]] = []
    draw = Draw(split, 4000, num_classes=3, seed=0)
    pixels = draw_pixels(
        split, draw, COLOUR, None, until=time.monotonic() - 1, on_image=lambda *done: told.append(done)
    )
    assert set(pixels.image_P) == {draw.images[0]} and told == [(1, 15)]


def test_whole_groups_are_held_out(split: PackedSplit) -> None:
    pixels = draw_pixels(split, Draw(split, 20_000, num_classes=2, seed=0), COLOUR, None)
    fit, held = hold_out(pixels, split.groups, seed=0)
    groups = np.array(split.groups)
    fitted, apart = set(groups[fit.image_P]), set(groups[held.image_P])
    assert len(apart) == 2 and len(fitted) == 8 and not fitted & apart
    assert len(fit) + len(held) == len(pixels)
    assert fit.weights_P.mean() == pytest.approx(1) and held.weights_P.mean() == pytest.approx(1)


def test_images_are_held_out_where_there_is_one_group() -> None:
    fit, held = hold_out(sample([0, 1] * 5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), ["g"] * 5, seed=0)
    assert len(set(held.image_P)) == 1 and not set(held.image_P) & set(fit.image_P)
    fit, held = hold_out(sample([0, 1], [0, 0]), ["g"], seed=0)
    assert fit.features_PC.tolist() == held.features_PC.tolist() == [[0], [1]]


@pytest.mark.parametrize("seed", range(4))
def test_a_class_of_one_image_is_in_both_parts(seed: int) -> None:
    pixels = sample([0, 1, 0, 1, 0, 1, 2], [0, 0, 1, 1, 2, 2, 2])
    for part in hold_out(pixels, ["a", "b", "c"], seed):
        assert set(part.labels_P) == {0, 1, 2}
        assert part.features_PC[part.labels_P == 2].tolist() == [[6]]


def test_constants_and_copies_are_left_out() -> None:
    values = torch.rand(100)
    features_PC = torch.stack([values, torch.full((100,), 3.3), 2 - 5 * values, torch.rand(100), values], dim=1)
    pixels = Pixels(features_PC, np.zeros(100, np.int64), np.zeros(100, np.int64), np.ones(100))
    channels = {"a": (4, 7, 8), "b": (0,), "c": (1,)}
    kept = distinct_channels(pixels, channels)
    assert kept == {"a": (4,), "b": (0,)}
    torch.testing.assert_close(with_only(pixels, channels, kept).features_PC, features_PC[:, [0, 3]])
