"""Makes the anomaly detector of an ensemble: scores chosen on val, thresholds from groups used for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.anomaly.corruptions import CHOOSE_WITH, corrupt
from segmill.anomaly.detector import EVERY, AnomalyPolicy, Detector, combined, image_scores
from segmill.anomaly.features import FeatureSpace, feature_space
from segmill.anomaly.scores import ALL_AT_ONCE, FEATURE_SCORE, LOGIT_SCORES, PROB_SCORES, Usual, Watched, auroc, usual
from segmill.data.packing.calibration import CALIBRATION, read_values
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.ensembling.predict import Ensemble, batches
from segmill.errors import InputError
from segmill.metrics.conformal import groups_needed, usual_scores
from segmill.models.members import Member

Image = NDArray[np.uint8]
Scores = NDArray[np.float64]

FITTED_ON, CHOSEN_ON = 96, 12  # images, at most
SEVERITIES = (2, 4)
LEVELS = 255
PIXELS_PER_IMAGE = 4096


def fit_detector(ensemble: Ensemble, packed_dir: Path, policy: AnomalyPolicy) -> Detector:
    """Return a detector of images that are unlike those the ensemble learned.

    The features' space is fitted on one half of val (and on train where it is packed at its own size), the scores are
    chosen by how well they tell the other half from corrupted copies of it, and thresholds come from the packed split
    ``calibration`` alone. Nothing is random.

    Raises InputError where val or calibration is empty.
    """
    val, calibration = PackedSplit(packed_dir / "val"), PackedSplit(packed_dir / CALIBRATION)
    if not len(calibration) or not len(val):
        raise InputError(
            f"the {'val' if len(calibration) else 'calibration'} split is empty, so no anomaly detector can be made",
            "name other groups in split.calibration",
        )
    member = watched_member(ensemble)
    pixel = (*(LOGIT_SCORES if member else ()), PROB_SCORES[0], *(PROB_SCORES[1:] if _voters(ensemble) > 1 else ()))

    def watch(images: Iterable[Image]) -> Watched:
        return _join([_means(ensemble.watch(image_BHWC, pixel, member)[1]) for image_BHWC in batches(images)])

    fit, choose = _halves(val)
    usual_images = [*(val.image(index) for index in fit), *_train_images(packed_dir)]
    seen = watch(usual_images).features_BD
    space = feature_space(seen) if seen is not None and len(seen) > 1 else None
    names = (*pixel, *((FEATURE_SCORE,) if space else ()))
    chosen_on = [val.image(index) for index in _even(choose, CHOSEN_ON)]
    reference = {name: usual(scores) for name, scores in image_scores(watch(chosen_on), names, space).items()}
    image_auroc = _image_aurocs(watch, chosen_on, names, space, reference)
    pixel_auroc = _pixel_aurocs(ensemble, chosen_on, pixel, member)
    image_score, pixel_score = _best(image_auroc), _best(pixel_auroc)
    kept = reference if image_score == ALL_AT_ONCE else {image_score: reference[image_score]}
    scores, levels_Q, confidence_N, features_ND = _calibrate(
        ensemble, calibration, pixel, pixel_score, member, _scorer(image_score, kept, space)
    )
    space = space if FEATURE_SCORE in kept else None
    values = read_values(packed_dir) if policy.by else {}
    return Detector(
        policy=policy,
        image_score=image_score,
        pixel_score=pixel_score,
        member=member if {*LOGIT_SCORES, FEATURE_SCORE} & {pixel_score, *kept} else "",
        usual=kept,
        space=space,
        calibration=_by_value(scores, calibration.groups, [values.get(one, EVERY) for one in calibration.ids], policy),
        group_scores_G=scores[_one_per_group(calibration.groups)],
        pixel_levels_Q=levels_Q,
        facts={
            "image_auroc": {name: round(found, 4) for name, found in image_auroc.items()},
            "pixel_auroc": {name: round(found, 4) for name, found in pixel_auroc.items()},
            "chosen_with": list(CHOOSE_WITH),
            "fitted_images": len(usual_images),
            "chosen_images": len(chosen_on),
            "calibration_images": len(calibration),
        },
        group_N=np.unique(calibration.groups, return_inverse=True)[1].astype(np.int64),
        confidence_N=confidence_N,
        embedding_NE=space.coordinates(features_ND) if space and features_ND is not None else None,
    )


def watched_member(ensemble: Ensemble) -> str:
    """Return the network that weighs most, "" where there is none."""
    networks = [
        name for name, one in ensemble.members.items() if isinstance(one, Member) and ensemble.weights[name] > 0
    ]
    return max(networks, key=lambda name: ensemble.weights[name], default="")


def _voters(ensemble: Ensemble) -> int:
    return sum(weight > 0 for weight in ensemble.weights.values())


def _halves(val: PackedSplit) -> tuple[list[int], list[int]]:
    """Return the samples of every other group, and the rest; of every other image where there is one group."""
    groups = sorted(set(val.groups))
    if len(val) == 1:
        return [0], [0]
    if len(groups) == 1:
        return list(range(0, len(val), 2)), list(range(1, len(val), 2))
    first = set(groups[::2])
    return (
        _even([index for index, group in enumerate(val.groups) if group in first], FITTED_ON),
        [index for index, group in enumerate(val.groups) if group not in first],
    )


def _train_images(packed_dir: Path) -> list[Image]:
    """Return some images of train, where they were not resized or enhanced: others look unlike those of val."""
    info = read_pack(packed_dir)
    if info.grayscale or info.clahe or (info.size and PackedSplit(packed_dir / "val").sizes() != [info.size]):
        return []
    train = PackedSplit(packed_dir / "train")
    return [train.image(index) for index in _even(range(len(train)), FITTED_ON)]


def _even(indices: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` of the indices, evenly spread."""
    if len(indices) <= most:
        return list(indices)
    return [indices[place] for place in np.linspace(0, len(indices) - 1, most).round().astype(int)]


def _means(watched: Watched) -> Watched:
    """Return what was watched with one pixel per image, so that many images fit into memory."""
    pixel = {name: watched.image(name).astype(np.float32)[:, None, None] for name in watched.pixel}
    return Watched(pixel, watched.features_BD)


def _join(parts: Sequence[Watched]) -> Watched:
    features = [part.features_BD for part in parts if part.features_BD is not None]
    return Watched(
        {name: np.concatenate([part.pixel[name] for part in parts]) for name in parts[0].pixel},
        np.concatenate(features) if features else None,
    )


def _image_aurocs(
    watch: Callable[[Iterable[Image]], Watched],
    images: Sequence[Image],
    names: tuple[str, ...],
    space: FeatureSpace | None,
    reference: Mapping[str, Usual],
) -> dict[str, float]:
    """Return each score's mean AUROC over corruptions, of these images against corrupted copies."""
    clean = image_scores(watch(images), names, space)
    clean[ALL_AT_ONCE] = combined(clean, reference)
    found: dict[str, list[float]] = {name: [] for name in clean}
    for kind in CHOOSE_WITH:
        for severity in SEVERITIES:
            copies = [corrupt(image, kind, severity, seed) for seed, image in enumerate(images)]
            scores = image_scores(watch(copies), names, space)
            scores[ALL_AT_ONCE] = combined(scores, reference)
            for name, its in found.items():
                its.append(auroc(clean[name], scores[name]))
    return {name: float(np.mean(its)) for name, its in found.items()}


def _pixel_aurocs(ensemble: Ensemble, images: Sequence[Image], pixel: tuple[str, ...], member: str) -> dict[str, float]:
    """Return each score's mean AUROC over images: of the pixels of a foreign patch against all others."""
    found: dict[str, list[float]] = {name: [] for name in pixel}
    for number, image_HWC in enumerate(images):
        patched_HWC, inside_HW = _with_patch(image_HWC, number)
        _, watched = ensemble.watch(patched_HWC[None], pixel, member)
        for name, its in found.items():
            scores_HW = watched.pixel[name][0].astype(np.float64)
            its.append(auroc(_some(scores_HW[~inside_HW], number), _some(scores_HW[inside_HW], number)))
    return {name: float(np.mean(its)) for name, its in found.items()}


def _with_patch(image_HWC: Image, seed: int) -> tuple[Image, NDArray[np.bool_]]:
    """Return the image with a patch of inverted colours, a third of each side long, and where it is."""
    random = np.random.default_rng(seed)
    sides = [max(1, side // 3) for side in image_HWC.shape[:2]]
    top, left = (
        int(random.integers(0, side - part + 1)) for side, part in zip(image_HWC.shape[:2], sides, strict=True)
    )
    inside_HW = np.zeros(image_HWC.shape[:2], bool)
    inside_HW[top : top + sides[0], left : left + sides[1]] = True
    return np.where(inside_HW[..., None], 255 - image_HWC, image_HWC).astype(np.uint8), inside_HW


def _some(values: NDArray[Any], seed: int, most: int = PIXELS_PER_IMAGE) -> NDArray[Any]:
    values = values.ravel()
    return values if len(values) <= most else np.random.default_rng(seed).choice(values, most, replace=False)


def _best(auroc_of: Mapping[str, float]) -> str:
    """Return the name of the largest; of equal ones the first."""
    return max(auroc_of, key=lambda name: round(auroc_of[name], 4))


def _scorer(
    image_score: str, reference: Mapping[str, Usual], space: FeatureSpace | None
) -> Callable[[Watched], Scores]:
    def score(watched: Watched) -> Scores:
        found = image_scores(watched, tuple(reference), space)
        return combined(found, reference) if image_score == ALL_AT_ONCE else found[image_score]

    return score


def _calibrate(
    ensemble: Ensemble,
    calibration: PackedSplit,
    pixel: tuple[str, ...],
    pixel_score: str,
    member: str,
    score: Callable[[Watched], Scores],
) -> tuple[Scores, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """Return the score of each calibration image, quantiles of their pixels' scores, confidences, and features."""
    scores: list[Scores] = []
    pixels: list[NDArray[np.float32]] = []
    confidences: list[NDArray[np.float32]] = []
    features: list[NDArray[np.float32]] = []
    for image_BHWC in batches(calibration.image(index) for index in range(len(calibration))):
        probs_BKHW, watched = ensemble.watch(image_BHWC, pixel, member)
        scores.append(score(watched))
        confidences.append(probs_BKHW.max(axis=1).mean(axis=(1, 2)))
        features += [] if watched.features_BD is None else [watched.features_BD]
        pixels += [_some(scores_HW, number) for number, scores_HW in enumerate(watched.pixel[pixel_score])]
    levels_Q = np.quantile(np.concatenate(pixels), np.linspace(0, 1, LEVELS)).astype(np.float32)
    features_ND = np.concatenate(features) if features else None
    return np.concatenate(scores), levels_Q, np.concatenate(confidences), features_ND


def _one_per_group(groups: Sequence[str]) -> list[int]:
    """Return the image in the middle of each group."""
    of: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        of.setdefault(group, []).append(index)
    return [own[len(own) // 2] for own in of.values()]


def _by_value(scores_N: Scores, groups: Sequence[str], values: Sequence[str], policy: AnomalyPolicy) -> dict[str, Any]:
    """Return the calibration of all images, and of those of each value that has groups enough for the policy's rate."""
    found = {EVERY: usual_scores(scores_N, groups)}
    for value in sorted(set(values) - {EVERY}):
        own = [index for index, its in enumerate(values) if its == value]
        if len({groups[index] for index in own}) >= groups_needed(policy.rate):
            found[value] = usual_scores(scores_N[own], [groups[index] for index in own])
    return found
