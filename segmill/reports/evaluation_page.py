"""The page of one evaluation: scores by class and member, curves, confusion, examples, what training saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from segmill.reports import figures
from segmill.reports.page import write_page
from segmill.reports.pictures import Box, Pixels, errors, image_above_classes, outlined, overlay, sheet, thumbnail

KINDS = ("image", "target", "prediction", "errors")
PICTURE_PX = 640  # wider pictures are reduced for the page


class ClassShare(NamedTuple):
    """A class: its colour as "#rrggbb", its share of the labelled pixels."""

    name: str
    color: str
    share: float


class MemberRow(NamedTuple):
    """A member: what it is built of, where its encoder's weights came from ("" without an encoder), its weight."""

    name: str
    backbone: str
    decoder: str
    started_from: str
    weight: float


class GainOverBest(NamedTuple):
    """The ensemble's gain in mIoU over its best member, with its interval at 95 % and the groups behind it."""

    member: str
    estimate: float
    low: float
    high: float
    groups: int


class Curve(NamedTuple):
    """One quantity by epoch, a line per member: ``lines`` maps a name to its points (epoch, value)."""

    name: str
    title: str
    lines: Mapping[str, Sequence[tuple[int, float]]]


class Example(NamedTuple):
    """A test image: image HWC, target and prediction HW, uint8. ``place`` counts from the worst, 1."""

    id: str
    group: str
    place: int
    miou: float
    accuracy: float
    image_HWC: Pixels
    target_HW: Pixels
    prediction_HW: Pixels


class View(NamedTuple):
    """A train sample at one time: image HWC and mask HW uint8, ``file`` the name of its picture."""

    file: str
    caption: str
    image_HWC: Pixels
    mask_HW: Pixels


class SeenSample(NamedTuple):
    """A train sample as packed, then as training saw it. ``boxes``: what was pasted into it, as packed."""

    title: str
    views: Iterable[View]
    boxes: Sequence[Box] = ()


class TrainingSeen(NamedTuple):
    """What one member's training saw. ``made``: kind of extra sample to how many there are."""

    member: str
    recipe: str
    originals: int
    made: Mapping[str, int]
    samples: Iterable[SeenSample]


@dataclass(frozen=True)
class EvaluationPage:
    """All that the page shows.

    Attributes:
        name: of the data set. ``data_version``: that the members were trained on.
        metrics: the content of metrics.json.
        tta_hflip: whether predictions are averaged with those of mirrored images.
        classes: in the order of their ids; ``colors_K3`` their colours; ``ignore_id`` marks unlabelled pixels.
        members: in the ensemble's order. ``gain``: the ensemble's over the best of them.
        confusion_KK: for each true class the shares it was predicted as; None for a class without a pixel.
        curves: of the members' trainings. ``examples``: worst first. ``training``: None where no member is a network.
    """

    name: str
    data_version: str
    metrics: Mapping[str, Any]
    tta_hflip: bool
    classes: Sequence[ClassShare]
    colors_K3: Pixels
    ignore_id: int
    members: Sequence[MemberRow]
    gain: GainOverBest
    confusion_KK: Sequence[Sequence[float | None]]
    curves: Sequence[Curve]
    examples: Iterable[Example]
    training: TrainingSeen | None


def write_evaluation_page(page: EvaluationPage, out_dir: Path) -> None:
    """Write index.html and figures/ into ``out_dir``: also overview.png, three examples to show elsewhere."""
    folder = out_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    examples = list(_draw_examples(page, folder))
    metrics = page.metrics
    scored = {"ensemble": metrics["ensemble"], **metrics["members"]}
    write_page(
        out_dir / "index.html",
        "evaluation.html.jinja",
        page=page,
        metrics=metrics,
        best=metrics["members"][page.gain.member],
        tables=[
            _score_table(page.classes, scored, *one) for one in (("IoU", "iou", "miou"), ("Dice", "dice", "mdice"))
        ],
        columns=list(metrics["members"]),
        curves=[_draw_curve(curve, folder) for curve in page.curves],
        examples=examples,
        kinds=KINDS,
        seen=[_draw_seen(page, sample, folder) for sample in page.training.samples] if page.training else [],
        extra=sum(page.training.made.values()) if page.training else 0,
    )
    _draw_overview(len(examples), folder)


def _score_table(
    classes: Sequence[ClassShare], scored: Mapping[str, Mapping[str, Any]], title: str, metric: str, mean: str
) -> dict[str, Any]:
    """Return a row per class, the ensemble's figure first, and the means."""
    rows = []
    for one in classes:
        values = [scores[metric][one.name] for scores in scored.values()]
        top = max((value for value in values if value is not None), default=None)
        rows.append({"class": one, "cells": [(value, value is not None and value == top) for value in values]})
    return {"title": title, "rows": rows, "means": [scores[mean] for scores in scored.values()]}


def _draw_curve(curve: Curve, folder: Path) -> figures.Figure:
    def plot(axes: Any) -> None:
        for index, (name, points) in enumerate(curve.lines.items()):
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            color, marker = figures.LINES[index % len(figures.LINES)], "o" if len(points) == 1 else None
            axes.plot(epochs, values, label=figures.short(name), color=color, lw=2, marker=marker)
        figures.whole_numbers(axes, "epoch")

    return figures.draw(folder, f"curve-{curve.name}", curve.title, plot)


def _draw_examples(page: EvaluationPage, folder: Path) -> Iterator[dict[str, Any]]:
    """Draw image, target, prediction and errors of each example; yield what the page says of it."""
    for rank, one in enumerate(page.examples):
        drawn = (
            one.image_HWC,
            overlay(one.image_HWC, one.target_HW, page.colors_K3, page.ignore_id),
            overlay(one.image_HWC, one.prediction_HW, page.colors_K3, page.ignore_id),
            errors(one.image_HWC, one.target_HW, one.prediction_HW, page.ignore_id),
        )
        for kind, pixels in zip(KINDS, drawn, strict=True):
            thumbnail(pixels, PICTURE_PX).save(folder / f"example-{rank:02d}-{kind}.png")
        facts = {key: getattr(one, key) for key in ("id", "group", "place", "miou", "accuracy")}
        yield {"stem": f"{folder.name}/example-{rank:02d}", **facts}


def _draw_seen(page: EvaluationPage, sample: SeenSample, folder: Path) -> dict[str, Any]:
    shown = []
    for number, view in enumerate(sample.views):
        drawn = image_above_classes(view.image_HWC, view.mask_HW, page.colors_K3, page.ignore_id)
        if number == 0:
            outlined(drawn, sample.boxes)
        drawn.thumbnail((PICTURE_PX, 2 * PICTURE_PX))
        drawn.save(folder / view.file)
        shown.append({"file": f"{folder.name}/{view.file}", "caption": view.caption})
    return {"title": sample.title, "pictures": shown}


def _draw_overview(count: int, folder: Path) -> None:
    """Put the worst, a typical and the best example under one another."""
    rows = [
        [Image.open(folder / f"example-{rank:02d}-{kind}.png") for kind in KINDS]
        for rank in sorted({0, count // 2, count - 1})
    ]
    sheet(rows).save(folder / "overview.png")
