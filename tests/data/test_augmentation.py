from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from segmill.data.augmentation import PRESETS, Augmenter, resolve_recipe
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
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(recipe: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        resolve_recipe(recipe)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_changes_the_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"float32.*leave out what changes type"):
        run(augmenter([{"Normalize": {}}]))


def test_presets_are_resolved_without_albumentations_and_cannot_be_changed() -> None:
    code = (
        "import sys; from segmill.data.augmentation import resolve_recipe as r; r('medical').clear();"
        "print(len(r('medical')) > 3, 'albumentations' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
