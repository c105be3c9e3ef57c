"""What a training should look like for this data, machine and time: facts in, proposals out, nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

STRIDE_PX = 32
SMALLEST_SIDE_PX = 128
LARGEST_SIDE_PX = 1024
# Passes over train that a pretrained and a random encoder want before more pixels are worth more than more passes. In
# 20 minutes on two cores CamVid's best member had 15 to 20 at 288 x 384 px (docs/log.md).
PASSES = {True: 20, False: 40}
LEAST_PASSES = 10
# Of a sample's side is a random window's, where recipes move the scale anyway.
WINDOW = 0.8
KEEPS_SIZE = 0.9  # an image that would keep this share of its side is not resized: that would only blur it
FORWARD_SHARE = 1 / 3  # of a training step's time: what a look at val costs per pixel
LOOKS_SHARE, LEAST_LOOKS, MOST_LOOKS = 0.05, 5, 20  # of the time that may go to looks at val, and how many those are
TRAINING_SHARE = 0.85  # of the time; checks, packing, ensemble and evaluation take the rest
LEAST_STEPS = 20  # per epoch: with fewer, a batch is too large for the set
LARGEST_BATCH = 8  # on a CPU a larger one is no quicker
EMA_BELOW = ((300, 0.9), (5_000, 0.99), (math.inf, 0.999))  # decay of the weights' average, by steps
RARE, VERY_RARE = 0.02, 0.005  # shares of train's labelled pixels
OUTDOORS = {"road", "car", "sky", "pedestrian", "person", "sidewalk", "pavement", "building", "tree", "vehicle", "pole"}
TISSUES = {"tumor", "tumour", "lesion", "organ", "cortex", "grey matter", "white matter", "liver", "kidney", "cell"}
TILE_BELOW = 0.35  # an image shrunk below this share of its side loses what is small
ASPECTS_ALIKE = 1.1


@dataclass(frozen=True)
class Candidate:
    """A member that could be trained here: ``pixels_s`` measured pixels per second of its training on all cores.

    ``settings``: further keys of it, such as decoder_width.
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
    """What is known of data and machine; of the data, train where nothing else is said.

    ``sizes``: (height, width) in px to how many train samples have it. ``class_pixels``: of train, by class name, and
    ``class_samples`` in how many train samples it occurs. ``grey``: all images have one channel. ``gpu``: its name,
    None without one; ``quick_bf16``: whether half the bytes are also half the time.
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
    windows = any(one.value == "driving" for one in augmentation)
    size, proposals = choose_size(facts, pace * seconds, PASSES[pretrained], windows=windows)
    judged_px = math.prod(proposals[0].value or max(facts.sizes, key=facts.sizes.__getitem__))
    passes = pace * seconds / (size[0] * size[1] * facts.samples)
    return [
        Proposal("members", _as_params(members), _why_members(members, facts, minutes)),
        *proposals,
        *choose_steps(facts, size, judged_px, passes, minutes, members),
        *choose_loss(facts),
        *augmentation,
    ]


def choose_members(facts: Facts, minutes: float) -> list[Candidate]:
    """Return the members: pretrained before random, three where each has LEAST_PASSES at a quarter of the pixels."""
    ranked = sorted(facts.candidates, key=lambda one: (not one.pretrained, -one.pixels_s))
    (height, width), _ = max(facts.sizes.items(), key=lambda item: item[1])
    needed = LEAST_PASSES * facts.samples * min(height * width, LARGEST_SIDE_PX**2) / 4
    for count in (3, 2):
        some = ranked[:count]
        seconds = 60 * minutes * TRAINING_SHARE / count
        if len(some) == count and all(one.pixels_s * seconds >= needed for one in some):
            return some
    return ranked[:1]


def choose_size(facts: Facts, pixels: float, passes: int, *, windows: bool) -> tuple[tuple[int, int], list[Proposal]]:
    """Return height and width that training sees, and the proposals that make it so, for ``pixels`` to go through.

    With ``windows`` training sees a random window of each sample, WINDOW of its side: scenes whose objects come at any
    size and place lose nothing by it, and val and test keep more of their pixels.
    """
    (height, width), count = max(facts.sizes.items(), key=lambda item: item[1])
    affordable = pixels / (passes * facts.samples)
    seen = math.sqrt(affordable / (height * width))
    scale = min(1.0, seen / WINDOW if windows else seen, LARGEST_SIDE_PX / max(height, width))
    scale = max(scale, min(1.0, SMALLEST_SIDE_PX / min(height, width)))
    if scale >= KEEPS_SIZE and max(height, width) <= LARGEST_SIDE_PX:
        scale = 1.0
    share = 100 * count / facts.samples
    why = (
        f"{share:.0f} % of the {facts.samples} train images have {height} x {width} px, and {passes} passes in this "
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
    share_of_side = seen / scale if windows else 1.0
    if share_of_side < 1:
        size = (_whole_strides(height * scale * share_of_side), _whole_strides(width * scale * share_of_side))
        why = f"{size[0] * size[1]:,} px are what the time leaves for each image, at the scale that val is judged at"
        proposals.append(Proposal("train.crop_size", list(size), why))
    else:
        proposals.append(Proposal("train.crop_size", None, "training sees whole samples in this time"))
    return size, proposals


def _how_to_resize(facts: Facts, scale: float) -> tuple[str, str]:
    aspects = [tall / wide for tall, wide in facts.sizes]
    if scale < TILE_BELOW:
        return "tile", f"shrunk to {scale:.2f} of its side an image loses what is small, so pieces are cut"
    if max(aspects) / min(aspects) > ASPECTS_ALIKE:
        reason = f"height by width goes from {min(aspects):.2f} to {max(aspects):.2f}; stretching would bend the shapes"
        return "fit", reason
    return "stretch", "all images have about the same aspect, so nothing is bent"


def choose_steps(
    facts: Facts, size: tuple[int, int], judged_px: int, passes: float, minutes: float, members: Sequence[Candidate]
) -> list[Proposal]:
    """Return the proposals for batch_size, max_minutes, epochs, looks at val and the average of the weights.

    ``judged_px``: pixels of a val sample at the scale it is judged at.
    """
    if facts.gpu:
        batch: int | str = "auto"
        why = f"{facts.gpu} has {facts.gpu_memory_gib:.0f} GiB; the largest that fits is found before the first epoch"
    else:
        batch = LARGEST_BATCH
        while batch > 2 and facts.samples // batch < LEAST_STEPS:
            batch //= 2
        why = (
            f"{facts.samples} samples make {max(1, facts.samples // batch)} steps of {batch} an epoch, and on a CPU a "
            "larger batch is no quicker"
        )
    rooms = 1 if facts.gpu else max(1, min(len(members), 2 * facts.cores))
    each = minutes * TRAINING_SHARE / math.ceil(len(members) / rooms)
    epochs = max(LEAST_PASSES, math.ceil(2 * passes))
    steps = round(passes * facts.samples / (LARGEST_BATCH if batch == "auto" else int(batch)))
    look = facts.val_samples * FORWARD_SHARE * judged_px / (facts.samples * size[0] * size[1])
    val_every = max(1, min(max(math.ceil(look / LOOKS_SHARE), round(passes / MOST_LOOKS)), int(passes / LEAST_LOOKS)))
    decay = next(decay for most, decay in EMA_BELOW if steps < most)
    where = "at the same time" if rooms > 1 else "after one another"
    return [
        Proposal("train.batch_size", batch, why),
        Proposal(
            "train.max_minutes", round(each, 1),
            f"{100 * TRAINING_SHARE:.0f} % of {minutes:g} minutes is for training, {len(members)} members {where}; the "
            "schedule fits itself to it",
        ),
        Proposal(
            "train.epochs", epochs,
            f"an upper bound only: at the measured pace the time holds {passes:.0f} passes of {size[0]} x {size[1]} px",
        ),
        Proposal(
            "train.val_every", val_every,
            f"a look at val costs {100 * look:.0f} % of a pass; {passes / val_every:.0f} looks choose the best weights",
        ),
        Proposal(
            "train.ema_decay", decay,
            f"about {steps:,} steps in the time; the average of the weights reaches back over {1 / (1 - decay):.0f}",
        ),
    ]  # fmt: skip


def choose_loss(facts: Facts) -> list[Proposal]:
    """Return the proposals for loss and class_weights, from the rarest class's share of the pixels."""
    total = sum(facts.class_pixels.values())
    rarest = min(facts.class_pixels, key=lambda name: facts.class_pixels[name])
    share = facts.class_pixels[rarest] / max(total, 1)
    said = f"the rarest class, {rarest}, has {100 * share:.2g} % of train's pixels"
    weights = "sqrt_inverse" if share < RARE else "none"
    weighs = "without weights it hardly moves the loss" if share < RARE else "that is enough without weights"
    loss = {"ce": 1.0, "dice": 1.0}
    return [
        Proposal("train.loss", loss, f"{said}; Dice counts every class alike, cross-entropy keeps the training steady"),
        Proposal("train.class_weights", weights, f"{said}; {weighs}"),
    ]


def choose_augmentation(facts: Facts) -> list[Proposal]:
    """Return the proposals for the recipe, where the classes tell what the images show, and for extra samples."""
    names = {name.lower().replace("_", " ") for name in facts.class_pixels}
    outdoors, tissues = sorted(names & OUTDOORS), sorted(names & TISSUES)
    found = []
    if len(outdoors) >= 2:
        found.append(
            Proposal("augment.recipe", "driving", f"the classes {', '.join(outdoors[:3])} are those of streets")
        )
    elif tissues or facts.grey:
        why = (
            f"the classes {', '.join(tissues[:3])} are of medicine" if tissues else "all images are grey, as scans are"
        )
        found.append(Proposal("augment.recipe", "medical", why))
    total = sum(facts.class_pixels.values())
    rare = [name for name, pixels in facts.class_pixels.items() if 0 < pixels < VERY_RARE * total]
    seldom = [name for name in rare if facts.class_samples[name] < 0.25 * facts.samples]
    if seldom:
        few = min(seldom, key=lambda name: facts.class_samples[name])
        why = (
            f"{few} is in {facts.class_samples[few]} of {facts.samples} train samples with below {100 * VERY_RARE:g} % "
        )
        found.append(Proposal("augment.copy_paste", 0.25, f"{why}of the pixels; pasted objects show it more often"))
    else:
        why = f"no class below {100 * VERY_RARE:g} % of the pixels is missing in three of four samples"
        found.append(Proposal("augment.copy_paste", 0.0, why))
    found.append(
        Proposal("augment.oversample", 0.25 if seldom else 0.0,
                 f"{', '.join(seldom)} occur in few samples; these are drawn more often" if seldom else why)
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
        f"{how}: {paces}; {minutes:g} minutes hold {len(members)} with {LEAST_PASSES} passes or more each"
        if len(members) > 1
        else f"in {minutes:g} minutes one member learns more than several that share the time; million pixels/s "
        f"{how}: {paces}"
    )


def _whole_strides(side: float) -> int:
    return max(STRIDE_PX, round(side / STRIDE_PX) * STRIDE_PX)
