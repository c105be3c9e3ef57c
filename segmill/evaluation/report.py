"""The page of a run, after its verdict: what was measured, with curves and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.loading.seen import TrainingView
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.data.packing.sealed import SplitPart, open_part
from segmill.ensembling.predict import read_ensemble
from segmill.evaluation.report_job import ReportJob
from segmill.evaluation.scoring import Scored, read_counts
from segmill.metrics import judging, scores
from segmill.metrics.counts import confusion_counts
from segmill.metrics.intervals import Interval, gain_interval, score_intervals
from segmill.renamed_keys import with_new_names
from segmill.reports.evaluation_page import (
    ClassShare,
    Contrast,
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
CONTRASTS = 6  # images drawn where two versions differ most
CONFIDENCE = 0.95  # of the intervals of scores
# Column of curves.csv: title and factor.
CURVES = {"loss": ("Training loss", 1), "val_miou": ("mIoU on val, %", 100)}


def write_report(job: ReportJob) -> dict[str, Interval]:
    """Write index.html and overview.png beside what ``evaluate`` left; return the ensemble's scores."""
    metrics = json.loads((job.reports_dir / "metrics.json").read_text())
    info, scored = read_pack(job.packed_dir), read_counts(job.reports_dir / "counts.npz")
    members = {
        name: json.loads((job.ensemble_dir / "members" / name / "member.json").read_text())
        for name in metrics["members"]
    }
    samples = open_part(PackedSplit(job.packed_dir / metrics["split"]), job.sealed)
    page = EvaluationPage(
        name=info.name,
        run=job.run,
        metrics=metrics,
        scores=score_intervals(scored.ensemble, scored.groups, confidence=CONFIDENCE, seed=0),
        tta_hflip=read_ensemble(job.ensemble_dir)["flips"],
        classes=_class_shares(info, scored),
        colors_K3=palette(info.colors),
        ignore_id=info.ignore_id,
        members=[_member_row(name, facts, metrics["ensemble"]["weights"][name]) for name, facts in members.items()],
        gain=_gain_over_best(scored),
        confusion_KK=_confusion_rows(scored.ensemble),
        curves=_curves(job.ensemble_dir, list(members)),
        examples=_examples(job.reports_dir, samples, scored),
        contrasts=_contrasts(job.predictions, samples, info) if job.predictions else None,
        training=_training_seen(job, members),
    )
    write_evaluation_page(page, job.reports_dir)
    return dict(page.scores)


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


def _gain_over_best(scored: Scored) -> GainOverBest | None:
    """Return the ensemble's gain over the member with the best mIoU; None for an ensemble of one."""
    if len(scored.members) == 1:
        return None
    best = max(scored.members, key=lambda name: judging.miou(scored.members[name]))
    gain = gain_interval(scored.ensemble, scored.members[best], scored.groups, confidence=CONFIDENCE, seed=0)
    return GainOverBest(best, gain)


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
        Curve(title, {name: _points(rows[name], column, factor) for name in names})
        for column, (title, factor) in CURVES.items()
    ]
    return [curve for curve in found if any(curve.lines.values())]


def _read_curves(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _points(rows: list[dict[str, str]], column: str, factor: float) -> list[tuple[int, float]]:
    return [(int(row["epoch"]), factor * float(row[column])) for row in rows if row.get(column)]


def _examples(out_dir: Path, samples: SplitPart, scored: Scored) -> Iterator[Example]:
    """Yield the images whose predictions were kept, in their order: worst first."""
    mious = np.array([judging.miou(counts) for counts in scored.ensemble])
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


def _contrasts(predictions: tuple[Path, Path], samples: SplitPart, info: PackInfo) -> list[Contrast]:
    """Return the images where the two predictions differ in the largest share of labelled pixels, most first.

    Of each group the first one comes before any second: the images of one group are often alike.
    """
    with np.load(predictions[0]) as own, np.load(predictions[1]) as rival:
        shares = []
        for index in range(len(samples)):
            labelled = samples.mask(index) != info.ignore_id
            different = (own[str(index)] != rival[str(index)]) & labelled
            shares.append(float(different.sum() / max(int(labelled.sum()), 1)))
        chosen = _of_each_group_first(sorted(range(len(samples)), key=lambda index: -shares[index]), samples.groups)
        most = sorted(chosen[:CONTRASTS], key=lambda index: -shares[index])
        return [
            _contrast(samples, index, shares[index], info, (own[str(index)], rival[str(index)]))
            for index in most
            if shares[index] > 0
        ]


def _of_each_group_first(order: Sequence[int], groups: Sequence[str]) -> list[int]:
    """Return the indices in order, the first one of each group before the others."""
    first: dict[str, int] = {}
    for index in order:
        first.setdefault(groups[index], index)
    leading = set(first.values())
    return [*first.values(), *(index for index in order if index not in leading)]


def _contrast(
    samples: SplitPart, index: int, share: float, info: PackInfo, seen: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> Contrast:
    target_HW = samples.mask(index)
    own, rival = (
        judging.miou(confusion_counts(target_HW, ids_HW, info.num_classes, info.ignore_id)) for ids_HW in seen
    )
    return Contrast(
        id=samples.ids[index],
        share=share,
        rival_miou=rival,
        miou=own,
        image_HWC=samples.image(index),
        target_HW=target_HW,
        rival_HW=seen[1],
        prediction_HW=seen[0],
    )


def _training_seen(job: ReportJob, members: dict[str, Any]) -> TrainingSeen | None:
    """Return some train samples as the first network saw them in its first, middle and last epoch, and extra ones."""
    name = next((name for name, facts in members.items() if facts["kind"] == "network"), None)
    if name is None:
        return None
    train = with_new_names("train", members[name]["params"]["train"])
    epochs = json.loads((job.ensemble_dir / "members" / name / "metrics.json").read_text())["epochs"]
    facts: dict[str, Any] = {key: train.get(key) for key in ("seed", "batch_size", "crop_size")}
    view = TrainingView(job.packed_dir, job.augmented_dir, **facts)
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
    yield View("as packed", *view.original(index))
    for epoch in epochs:
        yield View(f"epoch {epoch}", *view.seen(index, epoch))
