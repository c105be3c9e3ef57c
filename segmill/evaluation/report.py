"""What an evaluation leaves: its figures, and the page that shows them with curves and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.seen import TrainingView
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.ensembling.predict import read_ensemble
from segmill.evaluation.job import EvaluateJob
from segmill.evaluation.scoring import Scored, evaluate, read_counts
from segmill.metrics import scores
from segmill.metrics.intervals import gain_interval
from segmill.renamed_keys import with_new_names
from segmill.reports.evaluation_page import (
    ClassShare,
    Curve,
    EvaluationPage,
    Example,
    GainOverBest,
    MemberRow,
    SeenSample,
    TrainingSeen,
    View,
    write_evaluation_page,
)
from segmill.reports.pictures import palette

TRAINING_SAMPLES = 3  # drawn as training saw them, and as many extra ones of each kind
# Column of curves.csv: title and factor.
CURVES = {"loss": ("Training loss", 1), "val_miou": ("mIoU on val, %", 100)}


def evaluate_and_report(
    job: EvaluateJob, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Score the test split and write all of ``reports``; return the content of metrics.json.

    ``on_progress``: called with images done and images in all.

    Raises:
        InputError: as for ``evaluate``.
    """
    metrics = evaluate(job.ensemble_dir, job.packed_dir, job.out_dir, examples=job.overlays, on_progress=on_progress)
    write_report(job.out_dir, job.ensemble_dir, job.packed_dir, job.augmented_dir)
    return metrics


def write_report(out_dir: Path, ensemble_dir: Path, packed_dir: Path, augmented_dir: Path) -> None:
    """Write index.html and figures/ beside what ``evaluate`` left in ``out_dir``."""
    metrics = json.loads((out_dir / "metrics.json").read_text())
    info, scored = read_pack(packed_dir), read_counts(out_dir / "counts.npz")
    members = {
        name: json.loads((ensemble_dir / "members" / name / "member.json").read_text()) for name in metrics["members"]
    }
    page = EvaluationPage(
        name=info.name,
        data_version=", ".join(sorted({member["data_version"] or "unversioned" for member in members.values()})),
        metrics=metrics,
        tta_hflip=read_ensemble(ensemble_dir)["flips"],
        classes=_class_shares(info, scored),
        colors_K3=palette(info.colors),
        ignore_id=info.ignore_id,
        members=[_member_row(name, facts, metrics["ensemble"]["weights"][name]) for name, facts in members.items()],
        gain=_gain_over_best(scored),
        confusion_KK=_confusion_rows(scored.ensemble),
        curves=_curves(ensemble_dir, list(members)),
        examples=_examples(out_dir, PackedSplit(packed_dir / metrics["split"]), scored),
        training=_training_seen(packed_dir, augmented_dir, ensemble_dir, members),
    )
    write_evaluation_page(page, out_dir)


def _class_shares(info: PackInfo, scored: Scored) -> list[ClassShare]:
    """Return name, colour and share of the labelled pixels per class."""
    pixels = scores.total(scored.ensemble).sum(axis=1)
    return [
        ClassShare(name, color, float(share))
        for name, color, share in zip(info.class_names, info.colors, pixels / max(int(pixels.sum()), 1), strict=True)
    ]


def _member_row(name: str, facts: dict[str, Any], weight: float) -> MemberRow:
    """Return what the page says of a member from its member.json."""
    backbone = facts["spec"]["backbone"] or ""
    started_from = facts["encoder_weights"]["source"] if backbone else ""
    return MemberRow(
        name,
        backbone,
        decoder="SVM" if facts["kind"] == "svm" else facts["spec"]["decoder"],
        started_from="random initialisation" if started_from == "none" else started_from,
        weight=weight,
    )


def _gain_over_best(scored: Scored) -> GainOverBest:
    """Return the ensemble's gain over the member with the best mIoU."""
    best = max(scored.members, key=lambda name: scores.miou(scored.members[name]))
    gain = gain_interval(scored.ensemble, scored.members[best], scored.groups, confidence=0.95, seed=0)
    return GainOverBest(best, gain.estimate, gain.low, gain.high, gain.groups)


def _confusion_rows(counts_NKK: NDArray[np.int64]) -> list[list[float | None]]:
    """Return for each true class the shares it was predicted as; None for a class without a pixel."""
    table = scores.total(counts_NKK).astype(np.float64)
    return [
        [None if math.isnan(share) else float(share) for share in scores.ratio(row, np.full_like(row, row.sum()))]
        for row in table
    ]


def _curves(ensemble_dir: Path, names: Sequence[str]) -> list[Curve]:
    """Return the ``CURVES`` of the members' curves.csv that have a point."""
    rows = {name: _read_curves(ensemble_dir / "members" / name / "curves.csv") for name in names}
    found = [
        Curve(column, title, {name: _points(rows[name], column, factor) for name in names})
        for column, (title, factor) in CURVES.items()
    ]
    return [curve for curve in found if any(curve.lines.values())]


def _read_curves(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _points(rows: list[dict[str, str]], column: str, factor: float) -> list[tuple[int, float]]:
    return [(int(row["epoch"]), factor * float(row[column])) for row in rows if row.get(column)]


def _examples(out_dir: Path, samples: PackedSplit, scored: Scored) -> Iterator[Example]:
    """Yield the images whose predictions were kept, in their order: worst first."""
    mious = np.array([scores.miou(counts) for counts in scored.ensemble])
    with np.load(out_dir / "examples.npz", allow_pickle=False) as predictions:
        for key in predictions.files:
            index = int(key)
            yield Example(
                id=samples.ids[index],
                group=samples.groups[index],
                place=int((mious < mious[index]).sum()) + 1,
                miou=float(mious[index]),
                accuracy=scores.accuracy(scored.ensemble[index]),
                image_HWC=samples.image(index),
                target_HW=samples.mask(index),
                prediction_HW=predictions[key],
            )


def _training_seen(
    packed_dir: Path, augmented_dir: Path, ensemble_dir: Path, members: dict[str, Any]
) -> TrainingSeen | None:
    """Return some train samples as the first network saw them in its first, middle and last epoch, and extra ones."""
    name = next((name for name, facts in members.items() if facts["kind"] == "network"), None)
    if name is None:
        return None
    train = with_new_names("train", members[name]["params"]["train"])
    epochs = json.loads((ensemble_dir / "members" / name / "metrics.json").read_text())["epochs"]
    facts: dict[str, Any] = {key: train.get(key) for key in ("seed", "batch_size", "crop_size")}
    view = TrainingView(packed_dir, augmented_dir, **facts)
    return TrainingSeen(
        member=name,
        recipe=view.policy.title,
        originals=view.originals,
        made=view.policy.extra,
        samples=_seen_samples(view, sorted({0, epochs // 2, epochs - 1})),
    )


def _seen_samples(view: TrainingView, epochs: Sequence[int]) -> Iterator[SeenSample]:
    """Yield train samples spread evenly, then the first extra ones of each kind."""
    evenly = np.linspace(0, view.originals - 1, min(TRAINING_SAMPLES, view.originals)).round().astype(int).tolist()
    for index in evenly:
        yield SeenSample(view.split.ids[index], _views(view, index, epochs))
    kept = {kind: 0 for kind in view.policy.extra}
    for origin in view.origins():
        if kept[origin.kind] < TRAINING_SAMPLES:
            kept[origin.kind] += 1
            boxes = [(top, left, height, width) for top, left, height, width in origin.boxes]
            views = _views(view, view.index(origin.id), epochs)
            yield SeenSample(origin.describe(view.info.class_names), views, boxes)


def _views(view: TrainingView, index: int, epochs: Sequence[int]) -> Iterator[View]:
    yield View(f"training-{index}-packed.png", "as packed", *view.original(index))
    for epoch in epochs:
        yield View(f"training-{index}-{epoch}.png", f"epoch {epoch}", *view.seen(index, epoch))
