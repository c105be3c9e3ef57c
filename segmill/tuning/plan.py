"""Proposes settings for a data set, machine and time: facts in, proposals out, no side effects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from segmill.data.packing.resizing import Resizing
from segmill.tuning.facts import MOST, Facts, Proposal
from segmill.tuning.forecast import (
    OVERHEAD_S,
    Candidate,
    Forecast,
    Seen,
    epoch_seconds,
    prediction_seconds,
    samples_of,
)

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
# Of the time, where that leaves enough validation runs, and at most; and how many of these.
VALIDATION_SHARE, MOST_VALIDATION_SHARE, LEAST_VALIDATIONS, MOST_VALIDATIONS = 0.05, 0.2, 5, 20
TRAINING_SHARE, LEAST_TRAINING_SHARE = 0.85, 0.4  # of the time, at most and at least
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
TILE_PX, TILE_EPOCHS = 256, 1  # the shortest side of a tile; and how often each must be seen at least
ASPECTS_ALIKE = 1.1
COLOURED = 0.9  # share of the images


class Plan(NamedTuple):
    """What to set, and what comes of it."""

    proposals: list[Proposal]
    forecast: Forecast


def propose(facts: Facts, minutes: float) -> Plan:
    """Return what to set for a run of ``minutes``, members first, each with its reason and the figures behind it."""
    members = choose_members(facts, minutes)
    share, _ = facts.sharing(len(members))
    augmentation = choose_augmentation(facts)
    values = {one.key: one.value for one in augmentation}
    extra, crops = values["augment.copy_paste"] + values["augment.oversample"], _is_driving(values)
    epochs = EPOCHS[all(member.pretrained for member in members)]
    seconds = training_seconds(facts, minutes, members)
    seen = Seen(samples_of(facts.sizes, Resizing(), extra), facts.usual)
    for _ in range(3):  # speed depends on the size, and the size on the speed
        step_px = seen.px * batch_of(seen.samples)
        speed = fmean(member.speed(step_px, share) for member in members)
        seen, size = choose_size(facts, speed * seconds, epochs, crops=crops, extra=extra)
    tiled = any(one.value == "tile" for one in size)
    what = "tiles" if tiled else "images"
    steps, forecast = choose_steps(facts, seen, what, minutes, members)
    proposals = [
        Proposal("members", _as_params(members), _why_members(members, facts, minutes)),
        *size,
        *steps,
        *choose_loss(facts),
        *augmentation,
    ]
    return Plan(proposals, forecast)


def choose_members(facts: Facts, minutes: float) -> list[Candidate]:
    """Return the members: pretrained before random, three where each has LEAST_EPOCHS at a quarter of the pixels."""
    needed_px = min(math.prod(facts.usual), LARGEST_SIDE_PX**2) / 4
    step_px = needed_px * batch_of(facts.samples)
    ranked = sorted(facts.candidates, key=lambda one: (not one.pretrained, -one.speed(step_px)))
    for count in (3, 2):
        some = ranked[:count]
        share, turns = facts.sharing(count)
        seconds = 60 * minutes * TRAINING_SHARE / turns
        needed = LEAST_EPOCHS * facts.samples * needed_px
        if len(some) == count and all(one.speed(step_px, share) * seconds >= needed for one in some):
            return some
    return ranked[:1]


def training_seconds(facts: Facts, minutes: float, members: Sequence[Candidate]) -> float:
    """Return the time of each member's training, so that a run of ``minutes`` has time for all that comes with it."""
    _, turns = facts.sharing(len(members))
    left = 60 * minutes - OVERHEAD_S - judging_seconds(facts, members)
    return max(60 * minutes * LEAST_TRAINING_SHARE, min(60 * minutes * TRAINING_SHARE, left)) / turns


def judging_seconds(facts: Facts, members: Sequence[Candidate]) -> float:
    """Return the time of the last validation runs, the ensemble on val and the evaluation on test."""
    share, turns = facts.sharing(len(members))
    px = _predicted_px(facts)
    last = max(prediction_seconds(facts.val_px, one.speed(px, share)) for one in members)
    return turns * last + sum(prediction_seconds(facts.val_px + facts.test_px, one.speed(px)) for one in members)


def _predicted_px(facts: Facts) -> float:
    """Return the pixels that are predicted at once: images of one size in batches, those of many sizes one by one."""
    alone = facts.sizes.get(facts.usual, 0) < MOST * facts.samples
    return (1 if alone else LARGEST_BATCH) * math.prod(facts.usual)


def choose_size(
    facts: Facts, pixels: float, epochs: int, *, crops: bool, extra: float = 0.0
) -> tuple[Seen, list[Proposal]]:
    """Return what training sees of the set within ``pixels`` in all, and the proposals for it.

    With ``crops`` training sees a random crop of each sample, CROP of its side. Scenes whose objects have any size and
    place lose nothing by it. ``extra``: the share of samples that the augment stage adds.
    """
    height, width = facts.usual
    affordable = pixels / (epochs * facts.samples)
    side = math.sqrt(affordable / (height * width))
    scale = min(1.0, side / CROP if crops else side, LARGEST_SIDE_PX / max(height, width))
    scale = max(scale, min(1.0, SMALLEST_SIDE_PX / min(height, width)))
    if scale >= KEEPS_SIZE and max(height, width) <= LARGEST_SIDE_PX:
        scale = 1.0
    share = 100 * facts.sizes.get((height, width), 0) / facts.samples
    why = (
        f"{share:.0f} % of the {facts.samples} train images have {height} x {width} px, and {epochs} epochs in this "
        f"time leave {affordable:,.0f} px for each, {affordable / (height * width):.2f} of them"
        if share >= 100 * MOST
        else f"the {facts.samples} train images have {len(facts.sizes)} sizes, in the median {height} x {width} px, "
        f"and {epochs} epochs in this time leave {affordable:,.0f} px for each"
    )
    whole = len(facts.sizes) == 1 and scale == 1.0
    size = (_whole_strides(height * scale), _whole_strides(width * scale))
    tiles = _tiles(facts, scale, pixels, extra)
    if tiles is not None:
        reason = (
            f"shrunk to {scale:.2f} of its side an image loses small objects, so it is cut into tiles: "
            f"{tiles.samples:,} of {facts.samples:,} images, {pixels / (tiles.samples * tiles.px):.1f} epochs"
        )
        return tiles, [
            Proposal("prepare.size_px", list(tiles.size), why),
            Proposal("prepare.resize", "tile", reason),
            Proposal("train.crop_size", None, "training sees whole tiles"),
        ]
    resize, reason = ("stretch", "the images keep their size") if whole else _how_to_resize(facts)
    proposals = [
        Proposal("prepare.size_px", None if whole else list(size), why),
        Proposal("prepare.resize", resize, reason),
    ]
    samples = samples_of(facts.sizes, Resizing(), extra)
    share_of_side = max(side / scale, SMALLEST_SIDE_PX / min(size)) if crops else 1.0
    if share_of_side < 1:
        size = (_whole_strides(height * scale * share_of_side), _whole_strides(width * scale * share_of_side))
        why = f"{size[0] * size[1]:,} px per image are what the time allows, at the scale of prepare.size_px"
        proposals.append(Proposal("train.crop_size", list(size), why))
    else:
        proposals.append(Proposal("train.crop_size", None, "training sees whole samples in this time"))
    return Seen(samples, (height, width) if whole and share_of_side >= 1 else size), proposals


def _tiles(facts: Facts, scale: float, pixels: float, extra: float) -> Seen | None:
    """Return the tiles that images of ``scale`` are better cut into; None where they aren't, or the time is too short.

    Each tile must be seen TILE_EPOCHS times within ``pixels``.
    """
    if scale >= TILE_BELOW:
        return None
    size = tuple(_whole_strides(max(side * scale, min(side, TILE_PX))) for side in facts.usual)
    tile = size[0], size[1]
    how = Resizing(tile, "tile", min(facts.overlap_px, min(tile) - 1))
    tiles = Seen(samples_of(facts.sizes, how, extra), tile)
    return tiles if tiles.samples * tiles.px * TILE_EPOCHS <= pixels else None


def _how_to_resize(facts: Facts) -> tuple[str, str]:
    aspects = [tall / wide for tall, wide in facts.sizes]
    if max(aspects) / min(aspects) > ASPECTS_ALIKE:
        reason = f"height / width goes from {min(aspects):.2f} to {max(aspects):.2f}; stretching would distort shapes"
        return "fit", reason
    return "stretch", "all images have about the same aspect ratio, so stretching distorts little"


def choose_steps(
    facts: Facts, seen: Seen, what: str, minutes: float, members: Sequence[Candidate]
) -> tuple[list[Proposal], Forecast]:
    """Return the proposals for batch_size, max_minutes, epochs, validation runs and the average of the weights.

    And what comes of the run. ``what``: images or tiles, of which an epoch sees ``seen``.
    """
    batch: int | str = "auto" if facts.gpu else batch_of(seen.samples)
    taken = LARGEST_BATCH if batch == "auto" else int(batch)
    if facts.gpu:
        why = f"{facts.gpu} has {facts.gpu_memory_gib:.0f} GiB; the largest that fits is found before the first epoch"
    else:
        why = (
            f"{seen.samples:,} {what} make {max(1, seen.samples // taken):,} steps of {batch} per epoch, and on a CPU "
            "a larger batch is no faster"
        )
    share, turns = facts.sharing(len(members))
    seconds = training_seconds(facts, minutes, members)
    epoch_s = fmean(epoch_seconds(seen, taken, member.speed(seen.px * taken, share)) for member in members)
    at_once = _predicted_px(facts)
    val_s = fmean(prediction_seconds(facts.val_px, member.speed(at_once, share)) for member in members)
    undisturbed, cost = seconds / epoch_s, val_s / epoch_s
    rarest = max(math.ceil(cost / VALIDATION_SHARE), round(undisturbed / MOST_VALIDATIONS))
    often = math.ceil(cost / MOST_VALIDATION_SHARE)
    val_every = max(1, often, min(rarest, int(undisturbed / LEAST_VALIDATIONS)))
    epochs = undisturbed / (1 + cost / val_every) if undisturbed > val_every else undisturbed
    steps = epochs * max(1, seen.samples // taken)
    decay = next(decay for most, decay in EMA_BELOW if steps < most)
    count = "one member" if len(members) == 1 else (
        f"{len(members)} members {'at the same time' if turns < len(members) else 'after one another'}"
    )  # fmt: skip
    whole = (seconds * turns + OVERHEAD_S + judging_seconds(facts, members)) / 60
    size, validations = f"{seen.size[0]} x {seen.size[1]}", max(1, round(epochs / val_every))
    proposals = [
        Proposal("train.batch_size", batch, why),
        Proposal(
            "train.max_minutes", round(seconds / 60, 1),
            f"{100 * seconds * turns / (60 * minutes):.0f} % of {minutes:g} minutes is for training, {count}; "
            "the schedule adapts to it",
        ),
        Proposal(
            "train.epochs", max(LEAST_EPOCHS, math.ceil(2 * epochs)),
            f"an upper bound: at the measured speed there are {epochs:.1f} epochs of {size} px",
        ),
        Proposal(
            "train.val_every", val_every,
            f"a validation run takes {100 * cost:.0f} % of an epoch's time; {validations} of them "
            "select the best weights",
        ),
        Proposal(
            "train.ema_decay", decay,
            f"about {steps:,.0f} steps in the time; the moving average covers about {1 / (1 - decay):.0f} of them",
        ),
    ]  # fmt: skip
    return proposals, Forecast(seen.samples, what, taken, steps, epochs, seconds / 60, whole)


def batch_of(samples: int) -> int:
    """Return the batch of a CPU for as many train samples."""
    batch = LARGEST_BATCH
    while batch > 2 and samples // batch < LEAST_STEPS:
        batch //= 2
    return batch


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
    found = [recipe] if (recipe := _choose_recipe(facts)) else []
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


def _choose_recipe(facts: Facts) -> Proposal | None:
    """Return the recipe, where the classes or the images say clearly what they show; one set by hand stays."""
    if facts.recipe is not None:
        return Proposal("augment.recipe", facts.recipe, "it is not what a workspace begins with, so somebody chose it")
    names = {name.lower().replace("_", " ") for name in facts.class_pixels}
    outdoors, tissues = sorted(names & OUTDOORS), sorted(names & TISSUES)
    if tissues:
        return Proposal("augment.recipe", "medical", f"the classes {', '.join(tissues[:3])} are medical")
    if len(outdoors) >= 2:
        why = f"the classes {', '.join(outdoors[:3])} are street scenes"
        return Proposal("augment.recipe", "driving", why)
    look = facts.look
    if look is None:
        return None
    if look.coloured == 0 and not outdoors:
        return Proposal("augment.recipe", "medical", "all images are grey, like medical scans")
    varied = len(facts.sizes) > max(2, facts.samples // 10)
    if look.coloured >= COLOURED and (outdoors or varied or look.jpeg >= COLOURED):
        sign = (
            f"the class {outdoors[0]} is seen outdoors"
            if outdoors
            else f"they have {len(facts.sizes)} sizes"
            if varied
            else "they are JPEG"
        )
        why = f"the images are colour photos ({sign}): objects at every distance, in any light"
        return Proposal("augment.recipe", "driving", why)
    return None


def _is_driving(values: Mapping[str, Any]) -> bool:
    return str(values.get("augment.recipe")).partition("@")[0] == "driving"


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
    px = LARGEST_BATCH * math.prod(facts.usual)
    paces = ", ".join(f"{one.name} {one.speed(px) / 1e6:.2f}" for one in members)
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
