"""A recipe at work on a sample: the one module that knows albumentations."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.policy import COMPOSITIONS, Recipe
from segmill.errors import InputError, near_miss


class Augmenter:
    """Applies a recipe; what comes out depends only on (seed, epoch, sample) and the input, in whatever
    process.

    ``recipe``: as ``recipes.resolve_recipe`` returns it. ``size``: height and width in px of every result, or None to
    keep each image's own. ``ignore_id`` fills mask pixels that come from outside the image; the image is
    black there, before what only changes values. Pickles small; albumentations is imported on first use.
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
        # albumentations' own seeding gives every transform the same random numbers, and the same ones again in other
        # workers and epochs. Here all transforms share one generator, seeded by (seed, epoch, sample).
        key = hashlib.sha256(f"{self.seed}/{epoch}/{sample}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
        size = self.size or (mask_HW.shape[0], mask_HW.shape[1])
        if not self.recipe:
            return _fit(image_HWC, mask_HW, size, self.ignore_id, generator)
        rng = random.Random(int.from_bytes(key[8:16], "big"))
        moving, last_scale, changing = self._pipeline
        for transform in (*moving, last_scale, *changing):
            if transform is not None:
                transform.set_random_state(generator, rng)
        data: dict[str, Any] = {"image": image_HWC, "mask": mask_HW}
        try:
            for transform in moving:
                data = transform(**data)
            image, mask = data["image"], data["mask"]
            check_pixels(image, mask, image_HWC)
            if last_scale is None or not last_scale.should_apply():
                image, mask = _fit(image, mask, size, self.ignore_id, generator)
            else:
                image, mask = _scale_and_fit(image, mask, last_scale, size, self.ignore_id, generator)
            data = {"image": image, "mask": mask}
            for transform in changing:
                data = transform(**data)
        except _recipe_errors() as error:
            height, width = mask_HW.shape
            raise InputError(f"the recipe fails on {sample}, {height} x {width} px ({error})", "correct it") from error
        image = data["image"]
        check_pixels(image, mask, image_HWC)
        return image, mask

    @functools.cached_property
    def _pipeline(self) -> tuple[list[Any], Any, list[Any]]:
        """Return what may move pixels, a RandomScale that ends it (or None), and what only changes values.

        In between comes the cut to ``size``, so that no time goes into pixels that are cut off.
        """
        built = build_all(self.recipe, self.ignore_id)
        start = next((at + 1 for at in reversed(range(len(built))) if not _only_changes_values(built[at])), 0)
        moving, changing = built[:start], built[start:]
        last = moving[-1] if moving else None
        if isinstance(last, _transforms()["RandomScale"]) and last.area_for_downscale is None:
            return moving[:-1], last, changing
        return moving, None, changing


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks PyPI for a newer version
    import albumentations
    import cv2

    cv2.setNumThreads(1)  # images are small and the loader's workers are many
    return albumentations


def build_all(recipe: Sequence[Any], ignore_id: int) -> list[Any]:
    return [build(entry, ignore_id) for entry in recipe]


@functools.cache
def _recipe_errors() -> tuple[type[Exception], ...]:
    """Return what albumentations throws for an image that a transform can't take; it has no base class of its
    own."""
    import cv2
    from albumentations.augmentations.crops.transforms import CropSizeError

    return ValueError, TypeError, KeyError, CropSizeError, cv2.error


@functools.cache
def _transforms() -> dict[str, Any]:
    """Return what a recipe may name: transforms that are no base class, and COMPOSITIONS."""
    albumentations = _albumentations()
    public = {name: value for name, value in vars(albumentations).items() if inspect.isclass(value)}
    return {
        name: value
        for name, value in public.items()
        if name in COMPOSITIONS
        or (issubclass(value, albumentations.BasicTransform) and not value.__module__.endswith("transforms_interface"))
    }


def build(entry: Any, ignore_id: int) -> Any:
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
        raise InputError(f"recipe: {name} has {params!r}", "write its parameters as a mapping, like {p: 0.5}")
    for key in params:
        if key not in allowed:
            raise InputError(
                f"recipe: {name} has no parameter '{key}'; it has {', '.join(allowed)}"
                f"{near_miss(str(key), list(allowed))}"
            )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}
    if name in COMPOSITIONS:
        inner = values.get("transforms")
        if not isinstance(inner, tuple) or not inner:
            raise InputError(f"recipe: {name} has {inner!r} as its transforms", "write a list of them")
        values["transforms"] = build_all(inner, ignore_id)
    fills_mask = "fill_mask" in allowed and allowed["fill_mask"].default is not None
    if fills_mask and "fill_mask" not in values:
        values["fill_mask"] = ignore_id
    try:
        return known[name](**values)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"recipe: {name} refuses {dict(params)} ({' '.join(str(error).split())})", "correct it"
        ) from error


def _only_changes_values(built: Any) -> bool:
    albumentations = _albumentations()
    if isinstance(built, albumentations.BaseCompose):
        return all(_only_changes_values(inner) for inner in built.transforms)
    return isinstance(built, albumentations.ImageOnlyTransform)


def check_pixels(image: Any, mask: Any, before: NDArray[np.uint8], of: str = "") -> None:
    arrays = isinstance(image, np.ndarray) and isinstance(mask, np.ndarray)
    if arrays and image.dtype == mask.dtype == np.uint8 and image.shape == (*mask.shape, before.shape[2]):
        return
    raise InputError(
        f"the recipe{f': {of}' if of else ''} turns {before.shape} {before.dtype} into an image "
        f"{tuple(image.shape)} {image.dtype} with mask {tuple(mask.shape)} {mask.dtype}; leave out what changes type "
        "or channels (Normalize, ToTensorV2, ...)"
    )


def _scale_and_fit(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    scale: Any,
    size: tuple[int, int],
    ignore_id: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Do what RandomScale ``scale`` and ``_fit`` do, but cut before scaling up: the same places, fewer pixels."""
    import cv2

    factor = scale.get_params()["scale"]
    cut, scaled = [], []
    for have, want in zip(mask.shape, size, strict=True):
        kept = min(have, max(1, round(want / factor)))
        offset = int(generator.integers(have - kept + 1))
        cut.append(slice(offset, offset + kept))
        scaled.append(min(want, max(1, round(have * factor))))
    to = (scaled[1], scaled[0])
    image = cv2.resize(image[tuple(cut)], to, interpolation=scale.interpolation)
    mask = cv2.resize(mask[tuple(cut)], to, interpolation=scale.mask_interpolation)
    return _fit(image, mask, size, ignore_id, generator)


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
