"""Choose the members' weights on the val split and write the ensemble folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.ensembling.job import EnsembleJob
from segmill.ensembling.predict import FORMAT, Ensemble, PredictsProbs, batches
from segmill.errors import InputError
from segmill.metrics.counts import confusion_counts
from segmill.metrics.scores import miou

# Probabilities kept to choose weights by: 2 bytes each, so 400 MB at most, however large the val split is.
MAX_VALUES = 200_000_000
# A change of the weights must gain this much mIoU on val: less would fit the noise of the split.
LEAST_GAIN = 1e-4
STEPS = (0.5, 0.25, 0.1, 0.05)


@dataclass(frozen=True)
class ValEvidence:
    """What the val split says about the members, as far as their weights can change it.

    Where all members predict the same class, so does every mean of them: such pixels are only counted. The others
    are kept: truth_P with the members' probs_MKP, float16.
    """

    agreed_KK: NDArray[np.int64]
    truth_P: NDArray[np.uint8]
    probs_MKP: NDArray[np.float16]

    def counts(self, weights: NDArray[np.float64], pixels_at_once: int = 2**18) -> NDArray[np.int64]:
        """Return the K x K counts that the members mixed by ``weights`` would have."""
        classes = len(self.agreed_KK)
        counts_KK = self.agreed_KK.copy()
        for start in range(0, len(self.truth_P), pixels_at_once):
            here = slice(start, start + pixels_at_once)
            mixed_KP = np.zeros((classes, len(self.truth_P[here])), np.float32)
            for weight, probs_KP in zip(weights, self.probs_MKP, strict=True):
                if weight > 0:
                    mixed_KP += np.float32(weight) * probs_KP[:, here]
            counts_KK += confusion_counts(self.truth_P[here], mixed_KP.argmax(axis=0), classes, classes)
        return counts_KK

    def miou(self, weights: NDArray[np.float64]) -> float:
        """Return the mIoU from those counts."""
        return miou(self.counts(weights))


def gather_evidence(
    members: Mapping[str, PredictsProbs], split: PackedSplit, *, num_classes: int, ignore_id: int, tta_hflip: bool
) -> ValEvidence:
    """Predict every image of a split with every member, one batch in memory at a time.

    Where the split is too large to keep what is needed, an even, reproducible share of each image's labelled
    pixels is used instead.

    Raises:
        InputError: the split is empty or unlabelled, or a member knows other classes than the split.
    """
    if not len(split):
        raise InputError("The val split is empty, so the weights can't be chosen; raise split.val.")
    pixels_per_image = max(1, MAX_VALUES // (len(members) * num_classes * len(split)))
    everyone = Ensemble(members, dict.fromkeys(members, 1.0), tta_hflip=tta_hflip, facts={})
    agreed_KK = np.zeros((num_classes, num_classes), np.int64)
    truths, probs = [], []
    index = 0
    for image_BHWC in batches(split.image(i) for i in range(len(split))):
        named = dict(everyone.member_probs(image_BHWC))
        for name, probs_BKHW in named.items():
            if probs_BKHW.shape[1] != num_classes:
                raise InputError(
                    f"Member {name} knows {probs_BKHW.shape[1]} classes, the data {num_classes}; train it again."
                )
        for position in range(len(image_BHWC)):
            truth = split.mask(index).ravel()
            chosen = _share(np.flatnonzero(truth != ignore_id), pixels_per_image, index)
            truth_P = truth[chosen]
            probs_MKP = np.stack([each[position].reshape(num_classes, -1)[:, chosen] for each in named.values()])
            ids_MP = probs_MKP.argmax(axis=1)
            split_P = (ids_MP != ids_MP[0]).any(axis=0)
            agreed_KK += confusion_counts(truth_P[~split_P], ids_MP[0, ~split_P], num_classes, ignore_id)
            truths.append(truth_P[split_P])
            probs.append(probs_MKP[:, :, split_P].astype(np.float16))
            index += 1
    if not agreed_KK.any() and not sum(map(len, truths)):
        raise InputError("The val split has no labelled pixel, so the weights can't be chosen; label some.")
    return ValEvidence(agreed_KK, np.concatenate(truths), np.concatenate(probs, axis=2))


def choose_weights(evidence: ValEvidence) -> NDArray[np.float64]:
    """Return the weights_M, 0 or more and together 1, with the best mIoU found on the evidence.

    Equal weights and each member alone are tried first; from the best of these, weight is moved to or from
    one member at a time, in steps that shrink, as long as mIoU rises. Ties go to equal weights. Nothing is
    random.
    """
    members = len(evidence.probs_MKP)
    alone = np.eye(members)
    best = np.full(members, 1 / members)
    best_miou = evidence.miou(best)
    for candidate in alone:
        best, best_miou = _better(evidence, candidate, best, best_miou)
    for step in STEPS if members > 1 else ():
        moved = True
        while moved:
            before = best_miou
            for one in alone:
                best, best_miou = _better(evidence, (1 - step) * best + step * one, best, best_miou)
                less = np.maximum(best - step * one, 0)
                if less.sum() > 0:
                    best, best_miou = _better(evidence, less / less.sum(), best, best_miou)
            moved = best_miou > before
    return best


def build_ensemble(job: EnsembleJob) -> dict[str, Any]:
    """Choose weights on val and write the ensemble folder: ensemble.json, members/NAME/ and the anomaly detector.

    Returns:
        The content of ensemble.json; ``val`` holds the mIoU of each member and of the ensemble.

    Raises:
        InputError: a folder that is no member, or other classes than the data's.
    """
    from segmill.anomaly.detector import save_detector
    from segmill.ensembling.detecting import fit_detector
    from segmill.models.loading import load_member

    info = read_pack(job.packed_dir)
    members = {name: load_member(folder) for name, folder in job.member_dirs.items()}
    evidence = gather_evidence(
        members,
        PackedSplit(job.packed_dir / "val"),
        num_classes=info.num_classes,
        ignore_id=info.ignore_id,
        tta_hflip=job.tta_hflip,
    )
    weights = choose_weights(evidence)
    alone = np.eye(len(members))
    facts: dict[str, Any] = {
        "format": FORMAT,
        "dataset": info.name,
        "classes": [
            {"id": index, "name": name, "color": color}
            for index, (name, color) in enumerate(zip(info.class_names, info.colors, strict=True))
        ],
        "ignore_id": info.ignore_id,
        "weights": {name: round(float(weight), 6) for name, weight in zip(members, weights, strict=True)},
        "flips": job.tta_hflip,
        "val": {
            "members": {name: evidence.miou(one) for name, one in zip(members, alone, strict=True)},
            "ensemble": evidence.miou(weights),
        },
    }
    for name, folder in job.member_dirs.items():
        shutil.copytree(folder, job.out_dir / "members" / name)
    (job.out_dir / "ensemble.json").write_text(json.dumps(facts, indent=2) + "\n")
    if job.anomaly:
        ensemble = Ensemble(members, facts["weights"], tta_hflip=job.tta_hflip, facts=facts)
        save_detector(job.out_dir, fit_detector(ensemble.voting(), job.packed_dir, job.anomaly))
    return facts


def _better(
    evidence: ValEvidence, candidate: NDArray[np.float64], best: NDArray[np.float64], best_miou: float
) -> tuple[NDArray[np.float64], float]:
    candidate_miou = evidence.miou(candidate)
    # Written so that a NaN never wins.
    return (candidate, candidate_miou) if candidate_miou > best_miou + LEAST_GAIN else (best, best_miou)


def _share(pixels: NDArray[np.intp], most: int, seed: int) -> NDArray[np.intp]:
    """Return ``pixels``, or ``most`` of them in order; drawn at random: a stride could follow the columns."""
    if len(pixels) <= most:
        return pixels
    return np.sort(np.random.default_rng(seed).choice(pixels, most, replace=False))
