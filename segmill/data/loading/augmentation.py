"""Augmentation recipes and their use; the one module that knows albumentations."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.presets import PRESETS, Recipe
from segmill.errors import InputError, near_miss

OWN = "own"  # the name of a recipe that is written out in params.yaml
COMPOSITIONS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")
TRIAL_IDS = (10, 200)


@dataclass(frozen=True)
class Policy:
    """A checked recipe, as recipe.json keeps it.

    ``name`` is a preset's, or ``own`` with ``version`` None. ``sha256`` is of ``transforms`` as JSON with sorted keys.
    ``extra``: how many extra samples of each kind were made to go with it.
    """

    name: str
    version: int | None
    transforms: Recipe
    sha256: str
    extra: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name as params.yaml would hold it: ``medical@1``."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def mirrors(self) -> bool:
        """Tell whether left and right may be exchanged."""
        return any("HorizontalFlip" in leaf for leaf in _leaves(self.transforms))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_policy(path: Path) -> Policy:
    """Read recipe.json; InputError where there is none."""
    try:
        return Policy(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}", "run the augment stage first") from error


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
    _build_all(plain, ignore_id=255)
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
        for leaf in _leaves(policy.transforms):
            _try(leaf, image, mask, ignore_id)
        augment = Augmenter(policy.transforms, None, 0, ignore_id=ignore_id)
        for epoch in range(8):
            augment(image, mask, epoch=epoch, sample="trial")


class Augmenter:
    """Applies a recipe; what comes out depends only on (seed, epoch, sample) and the input, in whatever
    process.

    ``recipe``: as ``resolve_recipe`` returns it. ``size``: height and width in px of every result, or None to
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
            _check_pixels(image, mask, image_HWC)
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
        _check_pixels(image, mask, image_HWC)
        return image, mask

    @functools.cached_property
    def _pipeline(self) -> tuple[list[Any], Any, list[Any]]:
        """Return what may move pixels, a RandomScale that ends it (or None), and what only changes values.

        In between comes the cut to ``size``, so that no time goes into pixels that are cut off.
        """
        built = _build_all(self.recipe, self.ignore_id)
        start = next((at + 1 for at in reversed(range(len(built))) if not _only_changes_values(built[at])), 0)
        moving, changing = built[:start], built[start:]
        last = moving[-1] if moving else None
        if isinstance(last, _transforms()["RandomScale"]) and last.area_for_downscale is None:
            return moving[:-1], last, changing
        return moving, None, changing


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


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks PyPI for a newer version
    import albumentations
    import cv2

    cv2.setNumThreads(1)  # images are small and the loader's workers are many
    return albumentations


def _build_all(recipe: Sequence[Any], ignore_id: int) -> list[Any]:
    return [_build(entry, ignore_id) for entry in recipe]


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
        values["transforms"] = _build_all(inner, ignore_id)
    fills_mask = "fill_mask" in allowed and allowed["fill_mask"].default is not None
    if fills_mask and "fill_mask" not in values:
        values["fill_mask"] = ignore_id
    try:
        return known[name](**values)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"recipe: {name} refuses {dict(params)} ({' '.join(str(error).split())})", "correct it"
        ) from error


def _leaves(recipe: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the entries that are transforms, those inside compositions included."""
    for entry in recipe:
        ((name, params),) = entry.items()
        if name in COMPOSITIONS:
            yield from _leaves(params["transforms"])
        else:
            yield entry


def _only_changes_values(built: Any) -> bool:
    albumentations = _albumentations()
    if isinstance(built, albumentations.BaseCompose):
        return all(_only_changes_values(inner) for inner in built.transforms)
    return isinstance(built, albumentations.ImageOnlyTransform)


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
    transform = _build(entry, ignore_id)
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
    _check_pixels(first["image"], first["mask"], image, of=name)
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


def _check_pixels(image: Any, mask: Any, before: NDArray[np.uint8], of: str = "") -> None:
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
