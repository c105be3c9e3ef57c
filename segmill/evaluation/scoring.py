"""Score the ensemble and each of its members on one split, whole or in parts: counts per image, then metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.data.packing.sealed import SplitPart, open_part
from segmill.ensembling.predict import Ensemble, batches, mix
from segmill.errors import InputError, SegmillError
from segmill.metrics import judging, scores
from segmill.metrics.counts import confusion_counts

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """Per-image confusion counts of everything that was scored on one split; ``counts.npz`` holds the same.

    ``ensemble`` is N x K x K, ``members`` name to N x K x K; ``ids`` and ``groups`` have N entries.
    """

    ids: list[str]
    groups: list[str]
    ensemble: Counts
    members: dict[str, Counts]


def evaluate(
    ensemble_dir: Path,
    packed_dir: Path,
    out_dir: Path,
    *,
    split: str = "test",
    sealed: Collection[str] = (),
    examples: int = 9,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Predict a split at original size and write metrics.json, counts.npz and examples.npz into ``out_dir``.

    Args:
        ensemble_dir: the ensemble folder.
        packed_dir: packed splits.
        out_dir: exists or is made.
        split: train, val or test.
        sealed: groups that are left out of everything written and returned. Numbers of images count the others.
        examples: how many predictions to keep for the report: the worst, the most typical and the best images.
        on_progress: called with images done and images in all.

    Returns:
        The content of metrics.json: per member and for the ensemble ``miou``, ``mdice``, ``accuracy``, and
        ``iou`` and ``dice`` by class name; None for a class that the truth does not hold. ``sealed_groups``: how many
        were left out, where any were. ``anomaly``: as ``detection.detection``, where the ensemble has a detector.

    Raises:
        InputError: the split is empty, or its classes are not the ensemble's.
    """
    opened = _open(ensemble_dir, packed_dir, split, sealed)
    scored = score(opened.ensemble, opened.samples, opened.info.num_classes, opened.info.ignore_id, on_progress)
    return _write(opened, scored, out_dir, split=split, sealed=sealed, examples=examples)


def score_part(
    ensemble_dir: Path,
    packed_dir: Path,
    images: range,
    *,
    split: str = "test",
    sealed: Collection[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scored:
    """Count some images of a split, by their numbers among those that ``evaluate`` scores; see there."""
    opened = _open(ensemble_dir, packed_dir, split, sealed)
    indices = opened.samples.indices[images.start : images.stop]
    part = SplitPart(PackedSplit(packed_dir / split), indices)
    return score(opened.ensemble, part, opened.info.num_classes, opened.info.ignore_id, on_progress)


def finish(
    ensemble_dir: Path,
    packed_dir: Path,
    out_dir: Path,
    parts: Sequence[Scored],
    *,
    split: str = "test",
    sealed: Collection[str] = (),
    examples: int = 9,
) -> dict[str, Any]:
    """Write and return what ``evaluate`` does, from the parts that were scored, in the split's order.

    Raises SegmillError where they are not every image once.
    """
    opened = _open(ensemble_dir, packed_dir, split, sealed)
    scored = Scored(
        [one for part in parts for one in part.ids],
        [one for part in parts for one in part.groups],
        np.concatenate([part.ensemble for part in parts]),
        {name: np.concatenate([part.members[name] for part in parts]) for name in opened.ensemble.members},
    )
    if scored.ids != opened.samples.ids:
        raise SegmillError(f"the parts of {split} that were scored are not all of its images once; run again")
    return _write(opened, scored, out_dir, split=split, sealed=sealed, examples=examples)


class _Opened(NamedTuple):
    ensemble: Ensemble
    samples: SplitPart
    info: PackInfo


def _open(ensemble_dir: Path, packed_dir: Path, split: str, sealed: Collection[str]) -> _Opened:
    info = read_pack(packed_dir)
    ensemble = Ensemble.load(ensemble_dir, idle=True)
    known = [entry["name"] for entry in ensemble.facts["classes"]]
    if known != list(info.class_names):
        raise InputError(
            f"The ensemble knows the classes {known}, the data {list(info.class_names)}; train the members again."
        )
    return _Opened(ensemble, open_part(PackedSplit(packed_dir / split), sealed), info)


def _write(
    opened: _Opened, scored: Scored, out_dir: Path, *, split: str, sealed: Collection[str], examples: int
) -> dict[str, Any]:
    from segmill.evaluation.detection import detection  # cv2, which the flow's process has no use for

    ensemble, samples, known = opened.ensemble, opened.samples, list(opened.info.class_names)
    metrics = {
        "members": {name: summary(counts, known) for name, counts in scored.members.items()},
        "ensemble": {**summary(scored.ensemble, known), "weights": ensemble.weights},
        "split": split,
        "samples": len(samples),
        "groups": len(set(scored.groups)),
        "classes": known,
    }
    if sealed:
        metrics["sealed_groups"] = len(set(sealed))
    if found := detection(ensemble.voting(), [samples.image(index) for index in range(len(samples))], samples.groups):
        metrics["anomaly"] = found
    out_dir.mkdir(parents=True, exist_ok=True)
    write_counts(out_dir / "counts.npz", scored)
    chosen = choose_examples(scored.ensemble, examples)
    predictions = {str(index): ensemble.predict(samples.image(index)[None])[0] for index in chosen}
    _write_arrays(out_dir / "examples.npz", predictions)
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    return metrics


def score(
    ensemble: Ensemble,
    samples: PackedSplit | SplitPart,
    num_classes: int,
    ignore_id: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scored:
    """Count the ensemble's and every loaded member's pixels, image by image; each image is predicted once."""
    if not len(samples):
        raise InputError("The split to score is empty; raise its share in params.yaml, or add data.")
    named: dict[str, list[Counts]] = {name: [] for name in ensemble.members}
    together: list[Counts] = []
    done = 0
    for image_BHWC in batches(samples.image(index) for index in range(len(samples))):
        truths = [samples.mask(done + position) for position in range(len(image_BHWC))]
        probs_by_name = dict(ensemble.member_probs(image_BHWC))
        for name, probs_BKHW in probs_by_name.items():
            named[name] += _count(truths, probs_BKHW, num_classes, ignore_id)
        together += _count(truths, mix(probs_by_name.items(), ensemble.weights), num_classes, ignore_id)
        done += len(image_BHWC)
        on_progress(done, len(samples))
    members = {name: np.stack(counts) for name, counts in named.items()}
    return Scored(samples.ids, samples.groups, np.stack(together), members)


def summary(counts_NKK: Counts, class_names: list[str]) -> dict[str, Any]:
    """Return miou, mdice, accuracy, and iou and dice by class name, JSON-able (NaN becomes None)."""
    return {
        "miou": _number(judging.miou(counts_NKK)),
        "mdice": _number(judging.mdice(counts_NKK)),
        "accuracy": _number(scores.accuracy(counts_NKK)),
        "iou": dict(zip(class_names, map(_number, judging.iou(counts_NKK)), strict=True)),
        "dice": dict(zip(class_names, map(_number, judging.dice(counts_NKK)), strict=True)),
    }


def write_counts(path: Path, scored: Scored) -> None:
    """Write what ``read_counts`` reads."""
    members = {f"member:{name}": counts for name, counts in scored.members.items()}
    whole = {"ids": np.array(scored.ids), "groups": np.array(scored.groups), "ensemble": scored.ensemble}
    _write_arrays(path, {**whole, **members})


def read_counts(path: Path) -> Scored:
    """Read ``counts.npz``; InputError where there is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            members = {key.partition(":")[2]: arrays[key] for key in arrays.files if key.startswith("member:")}
            return Scored(arrays["ids"].tolist(), arrays["groups"].tolist(), arrays["ensemble"], members)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run the evaluate stage first.") from None


def choose_examples(counts_NKK: Counts, count: int) -> list[int]:
    """Return up to ``count`` image indices, worst mIoU first: a third of them the worst, a third
    the most typical (around the median), a third the best.

    Images without a labelled pixel have no mIoU and are never chosen. Ties go by index.
    """
    known = [(miou, index) for index, one in enumerate(counts_NKK) if not math.isnan(miou := judging.miou(one))]
    order = [index for _, index in sorted(known)]
    if len(order) <= count:
        return order
    low, high = -(-count // 3), count // 3
    middle = count - low - high
    start = (len(order) - middle) // 2
    return order[:low] + order[start : start + middle] + order[len(order) - high :]


def _count(
    truths: list[NDArray[np.uint8]], probs_BKHW: NDArray[np.float32], num_classes: int, ignore_id: int
) -> list[Counts]:
    ids_BHW = probs_BKHW.argmax(axis=1)
    return [confusion_counts(truth, ids, num_classes, ignore_id) for truth, ids in zip(truths, ids_BHW, strict=True)]


def _write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
