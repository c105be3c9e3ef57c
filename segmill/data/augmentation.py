"""Augmentation recipes and their use; the one module that knows albumentations."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError, near_miss

Recipe = list[dict[str, Any]]

# A recipe is a list of one-key mappings, transform -> its parameters, done in order. What an image lacks or
# has too much of after them (RandomScale) is cut or padded at a random place, so no preset needs to know the
# size.
PRESETS: dict[str, Recipe] = {
    "none": [],
    # Scans: either side, slightly other pose and anatomy, other scanner. Noise is the same in all channels:
    # grey stays grey.
    "medical": [
        {"HorizontalFlip": {"p": 0.5}},
        {
            "Affine": {
                "scale": [0.85, 1.15],
                "rotate": [-12, 12],
                "shear": [-4, 4],
                "translate_percent": [-0.05, 0.05],
                "p": 0.8,
            }
        },
        {"ElasticTransform": {"alpha": 60, "sigma": 8, "p": 0.2}},
        {"RandomBrightnessContrast": {"brightness_limit": 0.08, "contrast_limit": 0.12, "p": 0.6}},
        {"RandomGamma": {"gamma_limit": [75, 135], "p": 0.4}},
        {"GaussNoise": {"std_range": [0.005, 0.03], "per_channel": False, "p": 0.25}},
        {"GaussianBlur": {"blur_limit": [3, 5], "p": 0.1}},
    ],
    # Camera on a vehicle: objects at every distance, all weathers; never upside down.
    "driving": [
        {"HorizontalFlip": {"p": 0.5}},
        {"RandomScale": {"scale_limit": [-0.5, 1.0], "p": 1.0}},
        {"ColorJitter": {"brightness": [0.6, 1.4], "contrast": [0.7, 1.3], "saturation": [0.6, 1.4],
                         "hue": [-0.05, 0.05], "p": 0.7}},
        {"GaussianBlur": {"blur_limit": [3, 5], "p": 0.15}},
        {"GaussNoise": {"std_range": [0.005, 0.03], "p": 0.1}},
    ],
    # Fixed camera: poor light, compression, low resolution, infra-red (grey) at night.
    "surveillance": [
        {"HorizontalFlip": {"p": 0.5}},
        {"RandomScale": {"scale_limit": [-0.3, 0.5], "p": 0.8}},
        {"Affine": {"rotate": [-4, 4], "shear": [-3, 3], "p": 0.4}},
        {"RandomBrightnessContrast": {"brightness_limit": 0.3, "contrast_limit": 0.3, "p": 0.6}},
        {"RandomGamma": {"gamma_limit": [60, 160], "p": 0.4}},
        {"OneOf": {"transforms": [
            {"MotionBlur": {"blur_limit": [3, 7]}},
            {"Downscale": {"scale_range": [0.5, 0.9]}},
            {"ImageCompression": {"quality_range": [35, 90]}},
            {"GaussNoise": {"std_range": [0.01, 0.06]}},
        ], "p": 0.4}},
        {"ToGray": {"p": 0.1}},
    ],
}  # fmt: skip


def resolve_recipe(recipe: str | Sequence[Mapping[str, Any]]) -> Recipe:
    """Return a preset's list of {transform: parameters}, or the given list once every entry has proved valid.

    A preset's name is looked up without importing albumentations. InputError names the unknown preset,
    transform or parameter with its near miss, or the value that albumentations refuses.
    """
    if isinstance(recipe, str):
        if recipe not in PRESETS:
            names = sorted(PRESETS)
            hint = near_miss(recipe, names)
            raise InputError(f"recipe is '{recipe}'; take {', '.join(names)}, or write a list of transforms{hint}")
        return copy.deepcopy(PRESETS[recipe])
    plain = [dict(entry) if isinstance(entry, Mapping) else entry for entry in recipe]
    _build_all(plain, ignore_id=255)
    return copy.deepcopy(plain)


class Augmenter:
    """Applies a recipe; what comes out depends only on (seed, epoch, sample) and the input, in whatever
    process.

    ``recipe``: as ``resolve_recipe`` returns it. ``size``: height and width in px of every result, or None to
    keep each image's own. ``ignore_id`` fills mask pixels that come from outside the image; the image is
    black there. Pickles small; albumentations is imported on first use.
    """

    def __init__(self, recipe: Recipe, size: tuple[int, int] | None, seed: int, *, ignore_id: int) -> None:
        self.recipe = recipe
        self.size = size
        self.seed = seed
        self.ignore_id = ignore_id

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pipeline"}

    def __call__(
        self, image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], *, epoch: int, sample: str
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the augmented image (HWC uint8) and mask (HW uint8); the inputs are left as they are.

        InputError where the recipe fails, or makes something else of them than a uint8 image and mask of one
        size.
        """
        # albumentations' own seeding gives every transform the same stream, so that all their dice fall
        # alike, and repeats itself between workers and epochs; here one stream is shared by all and starts
        # anew with each sample.
        key = hashlib.sha256(f"{self.seed}/{epoch}/{sample}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
        size = self.size or (mask_HW.shape[0], mask_HW.shape[1])
        image, mask = image_HWC, mask_HW
        if self.recipe:
            self._pipeline.set_random_state(generator, random.Random(int.from_bytes(key[8:16], "big")))
            try:
                result = self._pipeline(image=image, mask=mask)
            except _recipe_errors() as error:
                height, width = mask.shape
                raise InputError(f"the recipe fails on {sample}, {height} x {width} px ({error}); mend it") from error
            image, mask = result["image"], result["mask"]
            if not (image.dtype == mask.dtype == np.uint8 and image.shape == (*mask.shape, image_HWC.shape[2])):
                raise InputError(
                    f"the recipe turns {image_HWC.shape} {image_HWC.dtype} into an image {image.shape} "
                    f"{image.dtype} with mask {mask.shape} {mask.dtype}; leave out what changes type or "
                    "channels (Normalize, ToTensorV2, ...)"
                )
        return _fit(image, mask, size, self.ignore_id, generator)

    @functools.cached_property
    def _pipeline(self) -> Any:
        return _albumentations().Compose(_build_all(self.recipe, self.ignore_id))


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks PyPI for a newer version
    import albumentations
    import cv2

    cv2.setNumThreads(1)  # images are small and the loader's workers are many
    return albumentations


def _build_all(recipe: Sequence[Any], ignore_id: int) -> list[Any]:
    return [_build(entry, ignore_id) for entry in recipe]


def _recipe_errors() -> tuple[type[Exception], ...]:
    """Return what albumentations throws for an image that a transform can't take; it has no base class of its
    own."""
    import cv2
    from albumentations.augmentations.crops.transforms import CropSizeError

    return ValueError, TypeError, KeyError, CropSizeError, cv2.error


@functools.cache
def _transforms() -> dict[str, Any]:
    """Return what a recipe may name: transforms, and compositions such as OneOf; not their base classes."""
    albumentations = _albumentations()
    bases = (albumentations.BasicTransform, albumentations.BaseCompose)
    public = {name: value for name, value in vars(albumentations).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in public.items()
        if issubclass(value, bases) and not value.__module__.endswith("transforms_interface")
    }


def _build(entry: Any, ignore_id: int) -> Any:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise InputError(
            f"recipe entry {entry!r} must be one transform with its parameters, like {{HorizontalFlip: {{p: 0.5}}}}"
        )
    ((name, params),) = entry.items()
    known = _transforms()
    if name not in known:
        raise InputError(f"recipe names the unknown transform '{name}'{near_miss(str(name), sorted(known))}")
    params = {} if params is None else params
    allowed = inspect.signature(known[name]).parameters
    if not isinstance(params, Mapping):
        raise InputError(f"recipe: {name} has {params!r}; write its parameters as a mapping, like {{p: 0.5}}")
    for key in params:
        if key not in allowed:
            raise InputError(
                f"recipe: {name} has no parameter '{key}'; it has {', '.join(allowed)}"
                f"{near_miss(str(key), list(allowed))}"
            )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}
    if "transforms" in values:
        values["transforms"] = _build_all(values["transforms"], ignore_id)
    fills_mask = "fill_mask" in allowed and allowed["fill_mask"].default is not None
    if fills_mask and "fill_mask" not in values:
        values["fill_mask"] = ignore_id
    try:
        return known[name](**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"recipe: {name} refuses {dict(params)} ({' '.join(str(error).split())}); mend it") from error


def _fit(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    size: tuple[int, int],
    ignore_id: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut or pad height and width to ``size``, image and mask at the same random place."""
    if mask.shape == size:
        return image, mask
    fitted_image = np.zeros((*size, image.shape[2]), np.uint8)
    fitted_mask = np.full(size, ignore_id, np.uint8)
    source, target = [], []
    for have, want in zip(mask.shape, size, strict=True):
        offset, length = int(generator.integers(abs(have - want) + 1)), min(have, want)
        source.append(slice(offset, offset + length) if have > want else slice(length))
        target.append(slice(offset, offset + length) if have < want else slice(length))
    fitted_image[tuple(target)] = image[tuple(source)]
    fitted_mask[tuple(target)] = mask[tuple(source)]
    return fitted_image, fitted_mask
