from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.policy import read_policy
from segmill.data.loading.presets import PRESETS
from segmill.data.loading.recipes import resolve_recipe, settle_own_policy, settle_policy, try_policy
from segmill.errors import InputError

RNG = np.random.default_rng(0)
IMAGE = np.kron(RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8), np.ones((6, 6, 1), np.uint8))
MASK = np.kron(RNG.integers(0, 3, (8, 10), dtype=np.uint8), np.ones((6, 6), np.uint8))


def augmenter(recipe: object, size: tuple[int, int] | None = None, seed: int = 0, ignore_id: int = 255) -> Augmenter:
    return Augmenter(resolve_recipe(recipe), size, seed, ignore_id=ignore_id)


def run(augment: Augmenter, epoch: int = 0, sample: str = "a") -> tuple[np.ndarray, np.ndarray]:
    return augment(IMAGE, MASK, epoch=epoch, sample=sample)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("size", [None, (32, 96)])
def test_presets_keep_type_size_and_ids(preset: str, size: tuple[int, int] | None) -> None:
    augment = augmenter(preset, size, ignore_id=7)
    before = IMAGE.copy(), MASK.copy()
    for epoch in range(8):
        image, mask = run(augment, epoch)
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)
        assert image.shape == (*(size or MASK.shape), 3)
        assert mask.shape == (size or MASK.shape)
        assert set(np.unique(mask)) <= {0, 1, 2, 7}
    np.testing.assert_array_equal(IMAGE, before[0])
    np.testing.assert_array_equal(MASK, before[1])


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"none"}))
def test_seed_epoch_and_sample_decide_alone(preset: str) -> None:
    augment = augmenter(preset)
    keys = [(epoch, sample) for epoch in range(3) for sample in "abc"]
    first = [run(augment, *key) for key in keys]
    fresh = pickle.loads(pickle.dumps(augment))
    for key, (image, mask) in list(zip(keys, first, strict=True))[::-1]:
        again = run(fresh, *key)
        np.testing.assert_array_equal(again[0], image)
        np.testing.assert_array_equal(again[1], mask)
    others = [*first, run(augmenter(preset, seed=1))]
    assert len({image.tobytes() + mask.tobytes() for image, mask in others}) == 10


def test_another_process_makes_the_same_pixels() -> None:
    code = (
        "import sys, pickle; augment, image, mask = pickle.load(sys.stdin.buffer);"
        "image, mask = augment(image, mask, epoch=3, sample='s');"
        "sys.stdout.buffer.write(image.tobytes() + mask.tobytes())"
    )
    augment = augmenter("medical", seed=5)
    given = pickle.dumps((augment, IMAGE, MASK))
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True)
    image, mask = run(augment, epoch=3, sample="s")
    assert done.stdout == image.tobytes() + mask.tobytes()


def test_transforms_throw_their_own_dice() -> None:
    """Two coin tosses in one recipe: albumentations' own seeding makes them always fall alike."""
    augment = augmenter([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}])
    seen = {run(augment, epoch)[1].tobytes() for epoch in range(40)}
    ways = {flipped.tobytes() for flipped in (MASK, MASK[::-1], MASK[:, ::-1], MASK[::-1, ::-1])}
    assert seen == ways


def test_image_and_mask_move_together() -> None:
    augment = augmenter([{"Affine": {"rotate": [-30, 30], "interpolation": 0, "p": 1.0}}], size=(40, 70))
    for epoch in range(5):
        image, mask = augment(np.repeat(MASK[:, :, None], 3, axis=2), MASK, epoch=epoch, sample="a")
        np.testing.assert_array_equal(image[:, :, 0], np.where(mask == 255, 0, mask))
        assert (mask == 255).any()


def test_without_recipe_the_size_is_cut_or_padded() -> None:
    image, mask = run(augmenter("none"))
    np.testing.assert_array_equal(image, IMAGE)
    image, mask = run(augmenter("none", size=(24, 64), ignore_id=9))
    rows = [y for y in range(25) if (MASK[y : y + 24] == mask[:, mask[0] != 9]).all()]
    assert rows  # 24 rows of the 48, all 60 columns, 4 columns of padding
    assert (mask == 9).all(axis=0).sum() == 4
    assert (image[mask == 9] == 0).all()


def test_compositions_are_built_with_the_ignore_id() -> None:
    recipe = [{"OneOf": {"transforms": [{"Rotate": {"limit": [45, 45], "p": 1}}], "p": 1}}]
    assert (run(augmenter(recipe, ignore_id=9))[1] == 9).any()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("medcal", "recipe is 'medcal'.*did you mean 'medical'"),
        ([{"HorizontalFlop": {}}], "unknown transform 'HorizontalFlop'; did you mean 'HorizontalFlip'"),
        ([{"Rotate": {"limits": 3}}], "Rotate has no parameter 'limits'.*did you mean 'limit'"),
        ([{"Rotate": {"p": 3}}], "Rotate refuses"),
        ([{"Rotate": 3}], "Rotate has 3; write its parameters as a mapping"),
        (["Rotate"], "must be one transform with its parameters"),
        ([{"Rotate": {}, "Affine": {}}], "must be one transform with its parameters"),
        ([{"OneOf": {"transforms": [{"Nope": {}}]}}], "unknown transform 'Nope'"),
        ([{"DualTransform": {}}], "unknown transform 'DualTransform'"),
        ([{"Compose": {"transforms": []}}], "unknown transform 'Compose'"),
        ([{"OneOf": {"p": 1}}], "OneOf has None as its transforms; write a list of them"),
        ("medical@7", "recipe is 'medical@7', and medical has no version '7'; it has 1, and medical alone means 1"),
        ("medcal@1", "recipe is 'medcal@1'.*did you mean 'medical'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(recipe: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        resolve_recipe(recipe)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_changes_the_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"float32.*leave out what changes type"):
        run(augmenter([{"Normalize": {}}]))


def test_a_policy_is_settled_by_name_version_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = settle_policy("medical")
    assert (first.name, first.version, first.title, first.mirrors) == ("medical", 1, "medical@1", True)
    assert first.sha256 == hashlib.sha256(json.dumps(first.transforms, sort_keys=True).encode()).hexdigest()
    monkeypatch.setitem(PRESETS, "medical", {**PRESETS["medical"], 10: [{"Rotate": {"limit": 5}}]})
    newest, held = settle_policy("medical"), settle_policy("medical@1")
    assert (newest.title, newest.transforms, newest.mirrors) == ("medical@10", [{"Rotate": {"limit": 5}}], False)
    assert held == first and newest.sha256 != held.sha256
    own = settle_policy([{"OneOf": {"transforms": [{"HorizontalFlip": {}}]}}])
    assert (own.name, own.version, own.title, own.mirrors) == ("own", None, "own", True)
    replace(own, extra={"balance": 3}).write(tmp_path / "recipe.json")
    assert read_policy(tmp_path / "recipe.json") == replace(own, extra={"balance": 3})
    with pytest.raises(InputError, match="run the augment stage first"):
        read_policy(tmp_path / "nowhere.json")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_pass_their_trial(preset: str) -> None:
    for version in PRESETS[preset]:
        try_policy(settle_policy(f"{preset}@{version}"), [(40, 56), (96, 64)], ignore_id=255)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ([{"Normalize": {}}], "recipe: Normalize turns .*float32.*leave out what changes type"),
        ([{"ToTensorV2": {}}], "recipe: ToTensorV2 turns .*leave out what changes type"),
        ([{"ToGray": {"num_output_channels": 1, "p": 0}}], None),
        ([{"ToGray": {"num_output_channels": 1, "p": 0.001}}], r"recipe: ToGray turns .*image \(40, 56"),
        ([{"Resize": {"height": 20, "width": 20, "mask_interpolation": 1}}], "Resize writes class ids .*nearest"),
        ([{"MaskDropout": {}}], None),  # what drops out is ignored
        ([{"Affine": {"rotate": [20, 20], "fill_mask": 3, "p": 1}}], None),
        ([{"FDA": {}}], "FDA needs fda_metadata, and training has images and masks only"),
        ([{"OneOf": {"transforms": [{"Mosaic": {}}, {"Blur": {}}]}}], "Mosaic needs mosaic_metadata"),
        ([{"CoarseDropout3D": {}}], "CoarseDropout3D works on volumes"),
        ([{"RandomSizedBBoxSafeCrop": {"height": 9, "width": 9}}], "RandomSizedBBoxSafeCrop fails"),
        ([{"RandomCrop": {"height": 50, "width": 50}}], "RandomCrop fails on an image of 40 x 56 px"),
        (
            [{"CenterCrop": {"height": 30, "width": 30, "p": 1}}, {"CenterCrop": {"height": 35, "width": 35, "p": 1}}],
            "the recipe fails on trial",
        ),
    ],
)
def test_what_training_cannot_use_is_refused_beforehand(recipe: list[dict[str, object]], said: str | None) -> None:
    if said is None:
        settle_own_policy(recipe, shapes=[(40, 56)], ignore_id=255)
        return
    with pytest.raises(InputError, match=said) as caught:
        settle_own_policy(recipe, shapes=[(40, 56)], ignore_id=255)
    assert "\n" not in str(caught.value)


def test_scaling_keeps_image_and_mask_together_and_covers_the_range() -> None:
    """Cut before scaled: a ramp of the columns tells how much of the image is left."""
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :], (80, 120))
    image = np.repeat(ramp[:, :, None], 3, axis=2).copy()
    mask = (ramp >= 120).astype(np.uint8)
    augment = augmenter([{"RandomScale": {"scale_limit": [-0.5, 1.0], "p": 1.0}}])
    widths = []
    for epoch in range(60):
        scaled, ids = augment(image, mask, epoch=epoch, sample="a")
        assert scaled.shape == image.shape and ids.shape == mask.shape
        inside = ids != 255
        if inside.all():
            widths.append(120 * 238 / max(1, int(scaled[40, -1, 0]) - int(scaled[40, 0, 0])))
        else:
            assert (scaled[~inside] == 0).all()
            widths.append(int(inside.any(axis=0).sum()))
        apart = np.abs(scaled[:, :, 0].astype(int) - 119) > 3  # at the border the two may be a pixel apart
        np.testing.assert_array_equal(ids[inside & apart], scaled[:, :, 0][inside & apart] >= 119)
    factors = np.array(widths) / 120
    assert 0.49 < factors.min() < 0.65 and 1.7 < factors.max() < 2.1
    assert 1.0 < factors.mean() < 1.5


def test_only_the_pixels_that_stay_are_worked_on() -> None:
    """What changes values comes after the cut: contrast is about the mean of what is left."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    augment = augmenter([{"CenterCrop": {"height": 40, "width": 10, "p": 1}}, {"InvertImg": {"p": 1}}], size=(40, 20))
    inverted, ids = augment(image, np.zeros((40, 80), np.uint8), epoch=0, sample="a")
    assert inverted.shape == (40, 20, 3) and (ids == 255).sum() == 400
    assert (inverted[ids == 255] == 255).all()


def test_presets_are_resolved_without_albumentations_and_cannot_be_changed() -> None:
    code = (
        "import sys; from segmill.data.loading.recipes import resolve_recipe as r; r('medical').clear();"
        "print(len(r('medical')) > 3, 'albumentations' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
