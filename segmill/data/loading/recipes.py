"""From what params.yaml says to a settled recipe: presets are looked up, written-out recipes are checked and tried."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.augmentation import Augmenter, build, build_all, check_pixels
from segmill.data.loading.policy import OWN, Policy, Recipe, recipe_leaves
from segmill.data.loading.presets import PRESETS
from segmill.errors import InputError, near_miss

TRIAL_IDS = (10, 200)


def settle_policy(recipe: str | Sequence[Mapping[str, Any]]) -> Policy:
    """Return a preset (``medical`` its newest version, ``medical@1`` that one) or a list of transforms as a policy.

    A preset is looked up without importing albumentations. InputError names the unknown preset, version, transform or
    parameter with its near miss, or the value that albumentations refuses.
    """
    name, version, transforms = (OWN, None, resolve_recipe(recipe)) if not isinstance(recipe, str) else _preset(recipe)
    text = json.dumps(transforms, sort_keys=True)
    return Policy(name, version, transforms, hashlib.sha256(text.encode()).hexdigest())


def resolve_recipe(recipe: str | Sequence[Mapping[str, Any]]) -> Recipe:
    """Return a preset's list of {transform: parameters}, or the given list once every entry has proved valid.

    Raises InputError as ``settle_policy`` does.
    """
    if isinstance(recipe, str):
        return _preset(recipe)[2]
    plain = [dict(entry) if isinstance(entry, Mapping) else entry for entry in recipe]
    build_all(plain, ignore_id=255)
    return copy.deepcopy(plain)


def settle_own_policy(
    recipe: Sequence[Mapping[str, Any]], *, shapes: Sequence[tuple[int, int]], ignore_id: int
) -> Policy:
    """Settle a written-out recipe and try it, as ``settle_policy`` and ``try_policy`` say."""
    policy = settle_policy(recipe)
    try_policy(policy, shapes, ignore_id=ignore_id)
    return policy


def try_policy(policy: Policy, shapes: Sequence[tuple[int, int]], *, ignore_id: int) -> None:
    """Use every transform, and all of them together, on made-up samples of ``shapes`` (height, width in px).

    InputError names the first transform that needs more than image and mask, changes type or channels, invents class
    ids, does not repeat itself under one seed, or fails.
    """
    for shape in shapes:
        image, mask = _made_up(shape)
        for leaf in recipe_leaves(policy.transforms):
            _try(leaf, image, mask, ignore_id)
        augment = Augmenter(policy.transforms, None, 0, ignore_id=ignore_id)
        for epoch in range(8):
            augment(image, mask, epoch=epoch, sample="trial")


def _preset(text: str) -> tuple[str, int, Recipe]:
    name, at, number = text.partition("@")
    if name not in PRESETS:
        names = sorted(PRESETS)
        hint = near_miss(name, names)
        raise InputError(f"recipe is '{text}'", f"take {', '.join(names)}, or write a list of transforms{hint}")
    versions = PRESETS[name]
    known = {str(version): version for version in versions}
    if at and number not in known:
        raise InputError(
            f"recipe is '{text}', and {name} has no version '{number}'; it has {', '.join(known)}, "
            f"and {name} alone means {max(versions)}"
        )
    version = known[number] if at else max(versions)
    return name, version, copy.deepcopy(versions[version])


def _made_up(shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image of coloured blocks and a mask whose two ids are far apart: whatever mixes them shows."""
    rng = np.random.default_rng(0)
    block = 8
    rows, columns = (-(-side // block) for side in shape)
    image = np.kron(rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8), np.ones((block, block, 1), np.uint8))
    ids = rng.choice(np.array(TRIAL_IDS, np.uint8), (rows, columns))
    mask = np.kron(ids, np.ones((block, block), np.uint8))
    height, width = shape
    return np.ascontiguousarray(image[:height, :width]), np.ascontiguousarray(mask[:height, :width])


def _try(entry: dict[str, Any], image: NDArray[np.uint8], mask: NDArray[np.uint8], ignore_id: int) -> None:
    ((name, params),) = entry.items()
    transform = build(entry, ignore_id)
    wants = sorted(set(transform.targets_as_params) - {"image", "mask"})
    if wants:
        raise InputError(
            f"recipe: {name} needs {', '.join(wants)}, and training has images and masks only; leave it out"
        )
    if "image" not in transform.targets:
        raise InputError(f"recipe: {name} works on volumes, and training has flat images", "leave it out")
    made = []
    for _ in range(2):
        transform.set_random_state(np.random.default_rng(0), random.Random(0))
        try:
            made.append(transform(image=image.copy(), mask=mask.copy(), force_apply=True))
        except Exception as error:  # whatever a library's transform throws, it is no use for this recipe
            height, width = mask.shape
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"recipe: {name} fails on an image of {height} x {width} px ({reason})", "correct it"
            ) from None
    first, again = made
    check_pixels(first["image"], first["mask"], image, of=name)
    chosen = (params or {}).get("fill_mask")
    allowed = {*TRIAL_IDS, ignore_id, *([chosen] if isinstance(chosen, int) else [])}
    invented = sorted(set(np.unique(first["mask"]).tolist()) - allowed)
    if invented:
        raise InputError(
            f"recipe: {name} writes class ids into the mask that were not there (such as {invented[0]}); give it "
            "mask_interpolation: 0 (nearest) or a fill_mask, where it has one, or leave it out"
        )
    if not (np.array_equal(first["image"], again["image"]) and np.array_equal(first["mask"], again["mask"])):
        raise InputError(f"recipe: {name} does not draw the same twice under one seed", "leave it out")
