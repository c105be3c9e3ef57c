"""Proposes settings for a data set, machine and time: facts in, proposals out, no side effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

STRIDE_PX = 32
SMALLEST_SIDE_PX = 128
LARGEST_SIDE_PX = 1024
# Epochs that a pretrained (True) and a random encoder need before more pixels are worth more than more epochs. In
# 20 minutes on two cores CamVid's best member had 15 to 20 at 288 x 384 px (docs/log.md).
EPOCHS = {True: 20, False: 40}
LEAST_EPOCHS = 10
# Side of a random crop as a share of the sample's side, where recipes change the scale anyway.
CROP = 0.8
KEEPS_SIZE = 0.9  # an image that would keep this share of its side is not resized: it would only be blurred
FORWARD_SHARE = 1 / 3  # of a training step's time per pixel: what a validation run takes
VALIDATION_SHARE, LEAST_VALIDATIONS, MOST_VALIDATIONS = 0.05, 5, 20  # of the time; and how many validation runs
TRAINING_SHARE = 0.85  # of the time; checks, packing, ensemble and evaluation take the rest
LEAST_STEPS = 20  # per epoch: with fewer, a batch is too large for the set
LARGEST_BATCH = 8  # on a CPU a larger one is no faster
EMA_BELOW = (
    (300, 0.9),
    (5_000, 0.99),
    (math.inf, 0.999),
)  # decay of the moving average of the weights, by number of steps
RARE, VERY_RARE = 0.02, 0.005  # shares of train's labelled pixels
OUTDOORS = {"road", "car", "sky", "pedestrian", "person", "sidewalk", "pavement", "building", "tree", "vehicle", "pole"}
TISSUES = {"tumor", "tumour", "lesion", "organ", "cortex", "grey matter", "white matter", "liver", "kidney", "cell"}
TILE_BELOW = 0.35  # an image shrunk below this share of its side loses small objects
ASPECTS_ALIKE = 1.1


@dataclass(frozen=True)
class Candidate:
    """A member that could be trained here: ``pixels_s`` measured pixels per second of its training on all cores.

    ``settings``: other keys of it, such as decoder_width.
    """

    name: str
    backbone: str
    decoder: str
    weights: str
    lr: float
    pixels_s: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def pretrained(self) -> bool:
        return self.weights != "none"


@dataclass(frozen=True)
class Facts:
    """What is known about data and machine; about the data, the train split unless said otherwise.

    ``sizes``: (height, width) in px to the number of train samples of that size. ``class_pixels``: pixels in train by
    class name. ``class_samples``: in how many train samples a class occurs. ``grey``: all images have one channel.
    ``gpu``: its name, None without one. ``quick_bf16``: whether bf16 is faster than fp32 here.
    """

    samples: int
    val_samples: int
    groups: int
    sizes: dict[tuple[int, int], int]
    class_pixels: dict[str, int]
    class_samples: dict[str, int]
    grey: bool
    cores: int
    memory_gib: float
    gpu: str | None
    gpu_memory_gib: float
    quick_bf16: bool
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Proposal:
    """A key of params.yaml, the value proposed for it, and why in one sentence."""

    key: str
    value: Any
    why: str


def propose(facts: Facts, minutes: float) -> list[Proposal]:
    """Return what to set for a run of ``minutes``, members first, each with its reason and the figures behind it."""
    members = choose_members(facts, minutes)
    pace = sum(member.pixels_s for member in members) / len(members)
    seconds = 60 * minutes * TRAINING_SHARE / len(members)
    pretrained = all(member.pretrained for member in members)
    augmentation = choose_augmentation(facts)
    crops = any(one.value == "driving" for one in augmentation)
    size, proposals = choose_size(facts, pace * seconds, EPOCHS[pretrained], crops=crops)
    judged_px = math.prod(proposals[0].value or max(facts.sizes, key=facts.sizes.__getitem__))
    epochs = pace * seconds / (size[0] * size[1] * facts.samples)
    return [
        Proposal("members", _as_params(members), _why_members(members, facts, minutes)),
        *proposals,
        *choose_steps(facts, size, judged_px, epochs, minutes, members),
        *choose_loss(facts),
        *augmentation,
    ]


def choose_members(facts: Facts, minutes: float) -> list[Candidate]:
    """Return the members: pretrained before random, three where each has LEAST_EPOCHS at a quarter of the pixels."""
    ranked = sorted(facts.candidates, key=lambda one: (not one.pretrained, -one.pixels_s))
    (height, width), _ = max(facts.sizes.items(), key=lambda item: item[1])
    needed = LEAST_EPOCHS * facts.samples * min(height * width, LARGEST_SIDE_PX**2) / 4
    for count in (3, 2):
        some = ranked[:count]
        seconds = 60 * minutes * TRAINING_SHARE / count
        if len(some) == count and all(one.pixels_s * seconds >= needed for one in some):
            return some
    return ranked[:1]


def choose_size(facts: Facts, pixels: float, epochs: int, *, crops: bool) -> tuple[tuple[int, int], list[Proposal]]:
    """Return height and width of what training sees of a sample, and the proposals for it, within ``pixels`` in all.

    With ``crops`` training sees a random crop of each sample, CROP of its side. Scenes whose objects have any size and
    place lose nothing by it, and val and test keep more of their pixels.
    """
    (height, width), count = max(facts.sizes.items(), key=lambda item: item[1])
    affordable = pixels / (epochs * facts.samples)
    seen = math.sqrt(affordable / (height * width))
    scale = min(1.0, seen / CROP if crops else seen, LARGEST_SIDE_PX / max(height, width))
    scale = max(scale, min(1.0, SMALLEST_SIDE_PX / min(height, width)))
    if scale >= KEEPS_SIZE and max(height, width) <= LARGEST_SIDE_PX:
        scale = 1.0
    share = 100 * count / facts.samples
    why = (
        f"{share:.0f} % of the {facts.samples} train images have {height} x {width} px, and {epochs} epochs in this "
        f"time leave {affordable:,.0f} px for each, {affordable / (height * width):.2f} of them"
    )
    alike = len(facts.sizes) == 1
    size = (_whole_strides(height * scale), _whole_strides(width * scale))
    whole = alike and scale == 1.0
    proposals = [Proposal("prepare.size_px", None if whole else list(size), why)]
    if whole:
        reason = "the images keep their size"
        resize = "stretch"
    else:
        resize, reason = _how_to_resize(facts, scale)
    proposals.append(Proposal("prepare.resize", resize, reason))
    share_of_side = seen / scale if crops else 1.0
    if share_of_side < 1:
        size = (_whole_strides(height * scale * share_of_side), _whole_strides(width * scale * share_of_side))
        why = f"{size[0] * size[1]:,} px per image are what the time allows, at the scale of val"
        proposals.append(Proposal("train.crop_size", list(size), why))
    else:
        proposals.append(Proposal("train.crop_size", None, "training sees whole samples in this time"))
    return size, proposals


def _how_to_resize(facts: Facts, scale: float) -> tuple[str, str]:
    aspects = [tall / wide for tall, wide in facts.sizes]
    if scale < TILE_BELOW:
        return "tile", f"shrunk to {scale:.2f} of its side an image loses small objects, so it is cut into tiles"
    if max(aspects) / min(aspects) > ASPECTS_ALIKE:
        reason = f"height / width goes from {min(aspects):.2f} to {max(aspects):.2f}; stretching would distort shapes"
        return "fit", reason
    return "stretch", "all images have about the same aspect ratio, so stretching distorts little"


def choose_steps(
    facts: Facts,
    size: tuple[int, int],
    judged_px: int,
    epochs_in_time: float,
    minutes: float,
    members: Sequence[Candidate],
) -> list[Proposal]:
    """Return the proposals for batch_size, max_minutes, epochs, validation runs and the average of the weights.

    ``judged_px``: pixels of a val sample at the scale of validation. ``epochs_in_time``: as measured on this machine.
    """
    if facts.gpu:
        batch: int | str = "auto"
        why = f"{facts.gpu} has {facts.gpu_memory_gib:.0f} GiB; the largest that fits is found before the first epoch"
    else:
        batch = LARGEST_BATCH
        while batch > 2 and facts.samples // batch < LEAST_STEPS:
            batch //= 2
        why = (
            f"{facts.samples} samples make {max(1, facts.samples // batch)} steps of {batch} per epoch, and on a CPU "
            "a larger batch is no faster"
        )
    rooms = 1 if facts.gpu else max(1, min(len(members), 2 * facts.cores))
    each = minutes * TRAINING_SHARE / math.ceil(len(members) / rooms)
    epochs = max(LEAST_EPOCHS, math.ceil(2 * epochs_in_time))
    steps = round(epochs_in_time * facts.samples / (LARGEST_BATCH if batch == "auto" else int(batch)))
    cost = facts.val_samples * FORWARD_SHARE * judged_px / (facts.samples * size[0] * size[1])
    rarest = max(math.ceil(cost / VALIDATION_SHARE), round(epochs_in_time / MOST_VALIDATIONS))
    val_every = max(1, min(rarest, int(epochs_in_time / LEAST_VALIDATIONS)))
    decay = next(decay for most, decay in EMA_BELOW if steps < most)
    where = "at the same time" if rooms > 1 else "after one another"
    return [
        Proposal("train.batch_size", batch, why),
        Proposal(
            "train.max_minutes", round(each, 1),
            f"{100 * TRAINING_SHARE:.0f} % of {minutes:g} minutes is for training, {len(members)} members {where}; the "
            "schedule adapts to it",
        ),
        Proposal(
            "train.epochs", epochs,
            f"an upper bound: at the measured speed there are {epochs_in_time:.0f} epochs of {size[0]} x {size[1]} px",
        ),
        Proposal(
            "train.val_every", val_every,
            f"a validation run takes {100 * cost:.0f} % of an epoch's time; {epochs_in_time / val_every:.0f} of them "
            "select the best weights",
        ),
        Proposal(
            "train.ema_decay", decay,
            f"about {steps:,} steps in the time; the moving average covers about {1 / (1 - decay):.0f} of them",
        ),
    ]  # fmt: skip


def choose_loss(facts: Facts) -> list[Proposal]:
    """Return the proposals for loss and class_weights, from the rarest class's share of the pixels."""
    total = sum(facts.class_pixels.values())
    rarest = min(facts.class_pixels, key=lambda name: facts.class_pixels[name])
    share = facts.class_pixels[rarest] / max(total, 1)
    said = f"the rarest class, {rarest}, has {100 * share:.2g} % of train's pixels"
    weights = "sqrt_inverse" if share < RARE else "none"
    weighs = "without weights it hardly changes the loss" if share < RARE else "that is enough without weights"
    loss = {"ce": 1.0, "dice": 1.0}
    return [
        Proposal("train.loss", loss, f"{said}; Dice counts every class equally, cross-entropy keeps training stable"),
        Proposal("train.class_weights", weights, f"{said}; {weighs}"),
    ]


def choose_augmentation(facts: Facts) -> list[Proposal]:
    """Return the proposals for the recipe, where the classes tell what the images show, and for extra samples."""
    names = {name.lower().replace("_", " ") for name in facts.class_pixels}
    outdoors, tissues = sorted(names & OUTDOORS), sorted(names & TISSUES)
    found = []
    if len(outdoors) >= 2:
        found.append(Proposal("augment.recipe", "driving", f"the classes {', '.join(outdoors[:3])} are street scenes"))
    elif tissues or facts.grey:
        why = (
            f"the classes {', '.join(tissues[:3])} are medical"
            if tissues
            else "all images are grey, like medical scans"
        )
        found.append(Proposal("augment.recipe", "medical", why))
    total = sum(facts.class_pixels.values())
    rare = [name for name, pixels in facts.class_pixels.items() if 0 < pixels < VERY_RARE * total]
    seldom = [name for name in rare if facts.class_samples[name] < 0.25 * facts.samples]
    if seldom:
        few = min(seldom, key=lambda name: facts.class_samples[name])
        why = (
            f"{few} is in {facts.class_samples[few]} of {facts.samples} train samples, with less than "
            f"{100 * VERY_RARE:g} % "
        )
        found.append(Proposal("augment.copy_paste", 0.25, f"{why}of the pixels; pasted objects make it more frequent"))
    else:
        why = f"no class with less than {100 * VERY_RARE:g} % of the pixels is missing in three of four samples"
        found.append(Proposal("augment.copy_paste", 0.0, why))
    found.append(
        Proposal("augment.oversample", 0.25 if seldom else 0.0,
                 f"{', '.join(seldom)} occur in few samples; these are repeated" if seldom else why)
    )  # fmt: skip
    return found


def _as_params(members: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    return {
        one.name: {
            "backbone": one.backbone,
            "decoder": one.decoder,
            "weights": one.weights,
            "lr": one.lr,
            **one.settings,
        }
        for one in members
    }


def _why_members(members: Sequence[Candidate], facts: Facts, minutes: float) -> str:
    known = sum(one.pretrained for one in facts.candidates)
    paces = ", ".join(f"{one.name} {one.pixels_s / 1e6:.2f}" for one in members)
    how = f"on {facts.gpu}" if facts.gpu else f"on {facts.cores} cores{' in bf16' if facts.quick_bf16 else ''}"
    return (
        f"of {len(facts.candidates)} candidates {known} have weights that can be reached; million pixels/s measured "
        f"{how}: {paces}; {minutes:g} minutes are enough for {len(members)} with {LEAST_EPOCHS} epochs or more each"
        if len(members) > 1
        else f"in {minutes:g} minutes one member learns more than several that share the time; million pixels/s "
        f"measured {how}: {paces}"
    )


def _whole_strides(side: float) -> int:
    return max(STRIDE_PX, round(side / STRIDE_PX) * STRIDE_PX)
