"""Statistics of an image, their sums that merge, and the reference that training images make."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from segmill.errors import InputError
from segmill.monitoring.statistics import COLORS, SCALES, image_statistics
from segmill.monitoring.sums import BINS, Sums, ValueSums
from segmill.monitoring.usual import TRAINING, KnownImage, UsualImages, usual_images, with_held_out

NAMES = ("road", "sky")
Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(16)


def noise(rng: Rng, *shape: int, low: int = 0, high: int = 256) -> np.ndarray:
    return rng.integers(low, high, shape, dtype=np.uint8)


def test_the_values_of_an_image_by_hand(rng: Rng) -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = (255, 0, 0)
    ids = np.zeros((40, 80), np.uint8)
    ids[:10], ids[10:20] = 1, 255  # a quarter each; 255 is unlabelled
    found = image_statistics(image, ids, NAMES, confidence=0.75)
    assert found.values == pytest.approx(
        {
            "brightness": 0.299 / 2, "contrast": 0.299 / 2, "saturation": 0.5, "sharpness": 0.0,
            "size": math.log2(3200), "aspect": 1.0, "confidence": 0.75, "area.road": 2 / 3, "area.sky": 1 / 3,
        },
        abs=1e-6,
    )  # fmt: skip
    assert found.colors[0] == found.colors[0b110000] == 0.5 and len(found.colors) == COLORS


def test_sharpness_is_the_variance_of_opencv_s_laplacian_and_falls_with_blur(rng: Rng) -> None:
    image = noise(rng, 64, 64, 3)
    laplacian = cv2.Laplacian(image[:, :, 1].astype(np.float64), cv2.CV_64F, ksize=1)[1:-1, 1:-1]
    ids = np.zeros((64, 64), np.uint8)
    assert image_statistics(image, ids, NAMES).values["sharpness"] == pytest.approx(math.log10(1 + laplacian.var()))
    sharp = [
        image_statistics(cv2.GaussianBlur(image, (0, 0), sigma), ids, NAMES).values["sharpness"]
        for sigma in (0.5, 1, 2)
    ]
    assert sharp == sorted(sharp, reverse=True)


@pytest.mark.parametrize("shape", [(1, 1), (2, 900), (3, 3), (1200, 5), (1700, 1300)])
def test_any_size_has_values_within_their_scales(rng: Rng, shape: tuple[int, int]) -> None:
    values = image_statistics(noise(rng, *shape, 3), noise(rng, *shape, high=2), NAMES, confidence=0.5).values
    assert math.isnan(values["sharpness"]) == (min(shape) < 3)
    for name, scale in SCALES.items():
        assert math.isnan(values[name]) or name == "aspect" or scale.low <= values[name] <= scale.high


def test_what_is_seen_of_a_large_image_is_close_to_all_of_it(rng: Rng) -> None:
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    image = np.broadcast_to(ramp[:, None, None], (3000, 2000, 3))
    ids = (image[:, :, 0] > 99).astype(np.uint8)
    values = image_statistics(image, ids, NAMES).values
    assert values["brightness"] == pytest.approx(image.mean() / 255, abs=0.01)
    assert values["contrast"] == pytest.approx(image.std() / 255, abs=0.01)
    assert values["area.sky"] == pytest.approx(ids.mean(), abs=0.01)


def test_unlabelled_images_have_no_areas(rng: Rng) -> None:
    values = image_statistics(noise(rng, 8, 8, 3), np.full((8, 8), 255, np.uint8), NAMES).values
    assert math.isnan(values["area.road"]) and math.isnan(values["confidence"])


values = some.lists(some.floats(-0.5, 1.5), max_size=30)


@settings(max_examples=60, deadline=None)
@given(values, values)
def test_merged_sums_are_those_of_all(one: list[float], other: list[float]) -> None:
    both = ValueSums.of("brightness", [*one, math.nan, *other])
    merged = ValueSums.of("brightness", one).merged(ValueSums.of("brightness", other))
    assert (merged.count, list(merged.histogram)) == (both.count, list(both.histogram))
    assert merged.count == len(one) + len(other) == merged.histogram.sum()
    if merged.count:
        assert merged.mean == pytest.approx(np.mean([*one, *other]), abs=1e-9)
    if merged.count > 1:
        assert merged.variance == pytest.approx(np.var([*one, *other], ddof=1), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(some.lists(some.floats(0, 1), min_size=1, max_size=50), some.sampled_from([0.025, 0.5, 0.975]))
def test_a_quantile_is_exact_to_a_bin(given_values: list[float], share: float) -> None:
    found = ValueSums.of("brightness", given_values).quantile("brightness", share)
    low, high = (np.quantile(given_values, share, method=how) for how in ("lower", "higher"))
    assert low - 1.01 / BINS <= found <= high + 1.01 / BINS


def test_what_only_rounding_tells_apart_does_not_vary() -> None:
    same = ValueSums.of("aspect", [0.41503749927884376] * 240)
    assert same.variance == 0 and same.quantile("aspect", 0.975) == same.mean


def test_sums_come_back_from_json(rng: Rng) -> None:
    images = [
        image_statistics(noise(rng, 20, 30, 3), noise(rng, 20, 30, high=2), NAMES, confidence=c) for c in (0.1, 1)
    ]
    sums = Sums.of(images)
    again = Sums.from_json(json.loads(sums.text()))
    assert again.as_json() == sums.as_json() and again.images == 2
    assert again.values["confidence"].mean == pytest.approx(0.55)
    assert len(sums.text()) < 6000
    with pytest.raises(InputError, match="format 2, and this segmill reads 1"):
        Sums.from_json({**sums.as_json(), "format": 2})


def test_sums_of_images_with_other_classes_merge(rng: Rng) -> None:
    image, ids = noise(rng, 8, 8, 3), np.zeros((8, 8), np.uint8)
    one, other = (Sums.of([image_statistics(image, ids, names)]) for names in (("road",), ("sky",)))
    both = Sums.merge([one, other, Sums()])
    assert both.images == 2 and both.values["area.road"].count == both.values["area.sky"].count == 1


def test_the_reference_counts_groups_not_images(rng: Rng, tmp_path: Path) -> None:
    bright = rng.uniform(60, 200, 10).round()
    images = [
        KnownImage(np.full((16, 16, 3), level, np.uint8), np.zeros((16, 16), np.uint8), f"camera {group}", 0.9)
        for group, level in enumerate(bright)
        for _ in range(30)
    ]
    usual = usual_images(iter(images), NAMES)
    assert (usual.groups, usual.sums.images, usual.source) == (10, 300, TRAINING)
    # 30 copies of an image say no more than one.
    assert usual.errors["brightness"] == pytest.approx(np.std(bright, ddof=1) / 255 / math.sqrt(10))
    assert math.isnan(usual_images(images[:30], NAMES).errors["brightness"])
    (tmp_path / "usual.json").write_bytes(usual.content())
    assert UsualImages.read(tmp_path / "usual.json").as_json() == usual.as_json()


def test_what_only_held_out_images_tell_has_groups_of_its_own(rng: Rng, tmp_path: Path) -> None:
    image, ids = noise(rng, 8, 8, 3), np.zeros((8, 8), np.uint8)
    sure = rng.uniform(0.4, 0.9, size=5).astype(np.float32)
    learned = usual_images([KnownImage(image, ids, f"camera {number}") for number in range(3)], NAMES)
    usual = with_held_out(learned, {"confidence": sure.repeat(4), "embedding.1": np.zeros(20)}, np.arange(5).repeat(4))
    assert (usual.groups, usual.sums.images) == (3, 3)
    assert (usual.groups_of("brightness"), usual.groups_of("confidence")) == (3, 5)
    assert (learned.sums.values["confidence"].count, usual.sums.values["confidence"].count) == (0, 20)
    assert usual.errors["confidence"] == pytest.approx(np.std(sure, ddof=1) / math.sqrt(5), rel=1e-4)
    assert usual.errors["brightness"] == learned.errors["brightness"]
    (tmp_path / "usual.json").write_bytes(usual.content())
    assert UsualImages.read(tmp_path / "usual.json").as_json() == usual.as_json()
    earlier = {name: said for name, said in learned.as_json().items() if name != "other_groups"}
    assert UsualImages.from_json(earlier).groups_of("embedding.1") == 3
