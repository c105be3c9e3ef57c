"""The page of one run: its verdict and what changed, scores by class and member, curves, confusion, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from segmill.files import replacing
from segmill.reports import figures
from segmill.reports.gate_rows import budget_rows, condition_rows
from segmill.reports.page import write_page
from segmill.reports.pictures import (
    Box,
    Pixels,
    as_uri,
    errors,
    image_above_classes,
    outlined,
    overlay,
    sheet,
    thumbnail,
)
from segmill.reports.run_facts import RunFacts

if TYPE_CHECKING:
    from segmill.metrics.intervals import Gain, Interval

KINDS = ("image", "target", "prediction", "errors")
PICTURE_PX, QUALITY = 512, 88  # wider pictures are reduced for the page


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
    """The member with the best mIoU, and the ensemble's gain over it."""

    member: str
    gain: Gain


class Curve(NamedTuple):
    """One quantity by epoch, a line per member: ``lines`` maps a name to its points (epoch, value)."""

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


class Contrast(NamedTuple):
    """A test image that two versions see differently: the ``share`` of its labelled pixels, and the mIoU of either."""

    id: str
    share: float
    rival_miou: float
    miou: float
    image_HWC: Pixels
    target_HW: Pixels
    rival_HW: Pixels
    prediction_HW: Pixels


class View(NamedTuple):
    """A train sample at one time: image HWC and mask HW uint8."""

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
        name: of the data set. ``run``: its verdict, and when and from what it was made.
        metrics: the content of metrics.json. ``scores``: miou, mdice and accuracy of the ensemble, with intervals.
        tta_hflip: whether predictions are averaged with those of mirrored images.
        classes: in the order of their ids; ``colors_K3`` their colours; ``ignore_id`` marks unlabelled pixels.
        members: in the ensemble's order. ``gain``: over the best of them; None for an ensemble of one.
        confusion_KK: for each true class the shares it was predicted as; None for a class without a pixel.
        curves: of the members' trainings. ``examples``: worst first. ``training``: None where no member is a network.
        contrasts: where the version and its rival differ, most first; None where their predictions are not known.
    """

    name: str
    run: RunFacts
    metrics: Mapping[str, Any]
    scores: Mapping[str, Interval]
    tta_hflip: bool
    classes: Sequence[ClassShare]
    colors_K3: Pixels
    ignore_id: int
    members: Sequence[MemberRow]
    gain: GainOverBest | None
    confusion_KK: Sequence[Sequence[float | None]]
    curves: Sequence[Curve]
    examples: Iterable[Example]
    contrasts: Sequence[Contrast] | None
    training: TrainingSeen | None


def write_evaluation_page(page: EvaluationPage, out_dir: Path) -> None:
    """Write index.html, which holds its pictures, and overview.png, three examples to show elsewhere."""
    drawn = [(one, _draw_example(page, one)) for one in page.examples]
    metrics = page.metrics
    facts = _complete(page.run.verdict.facts, metrics)
    scored = {"ensemble": metrics["ensemble"], **(metrics["members"] if page.gain else {})}
    rivals = dict(zip(facts["class_names"], facts.get("champion_iou", ()), strict=False))
    tables = [_score_table(page.classes, scored, *one) for one in (("IoU", "iou", "miou"), ("Dice", "dice", "mdice"))]
    if rivals:
        _add_rival(tables[0], page.classes, rivals, facts["champion_miou"], page.run.verdict.rival_title)
    with replacing(out_dir / "overview.png") as draft:
        _overview([pictures for _, pictures in drawn]).save(draft, "PNG")
    write_page(
        out_dir / "index.html",
        "evaluation.html.jinja",
        page=page,
        run=page.run,
        verdict=page.run.verdict,
        metrics=metrics,
        facts=facts,
        best=metrics["members"][page.gain.member] if page.gain else None,
        bar=_gain_bar(facts),
        conditions=condition_rows(facts),
        budget=list(budget_rows(facts)),
        tables=tables,
        columns=list(scored)[1:],
        curves=[figures.draw(curve.title, partial(plot_curve, curve=curve)) for curve in page.curves],
        examples=[(one, list(zip(KINDS, map(_uri, pictures), strict=True))) for one, pictures in drawn],
        contrasts=[(one, _draw_contrast(page, one)) for one in page.contrasts or ()],
        seen=[_draw_seen(page, sample) for sample in page.training.samples] if page.training else [],
        extra=sum(page.training.made.values()) if page.training else 0,
    )


def _complete(facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts with what those of a verdict lack that read no test groups, or sealed ones.

    Their gain is that on all test images that may be shown.
    """
    settings = facts.get("settings", {})
    return {
        "min_gain": settings.get("min_gain", 0.0),
        "confidence": settings.get("confidence", 0.95),
        "class_names": metrics["classes"],
        **facts,
        "groups": facts["groups"] if "conditions" in facts else metrics["groups"],
    }


def _score_table(
    classes: Sequence[ClassShare], scored: Mapping[str, Mapping[str, Any]], title: str, metric: str, mean: str
) -> dict[str, Any]:
    """Return a row per class, the ensemble's figure first, and the means."""
    rows = []
    for one in classes:
        values = [scores[metric][one.name] for scores in scored.values()]
        top = max((value for value in values if value is not None), default=None)
        rows.append({"class": one, "cells": [(value, value is not None and value == top) for value in values]})
    return {"title": title, "rows": rows, "means": [scores[mean] for scores in scored.values()], "rival": ""}


def _add_rival(
    table: dict[str, Any], classes: Sequence[ClassShare], iou: Mapping[str, float | None], mean: float, title: str
) -> None:
    """Put the rival's figure and the gain over it at the end of each row."""
    for row, one in zip(table["rows"], classes, strict=True):
        row["rival"] = _with_gain(row["cells"][0][0], iou.get(one.name))
    table |= {"rival": title, "rival_mean": _with_gain(table["means"][0], mean)}


def _with_gain(own: float | None, rival: float | None) -> tuple[float | None, float | None]:
    return rival, None if own is None or rival is None else own - rival


def _gain_bar(facts: Mapping[str, Any]) -> dict[str, float] | None:
    """Return where the gain, its interval, zero and min_gain are on a line, in % of its length; None without a gain."""
    if facts.get("gain") is None:
        return None
    marks = {"zero": 0.0, "least": facts["min_gain"], "gain": facts["gain"], "low": facts["gain_low"],
             "high": facts["gain_high"]}  # fmt: skip
    start, end = min(marks.values()), max(marks.values())
    room = 0.08 * (end - start) or 0.01
    return {name: 100 * (value - start + room) / (end - start + 2 * room) for name, value in marks.items()}


def plot_curve(axes: Any, curve: Curve) -> None:
    """Draw a line per member; of a training of one epoch a point, with its value in the legend."""
    for index, (name, points) in enumerate(curve.lines.items()):
        epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
        color, label, marker = figures.LINES[index % len(figures.LINES)], figures.short(name), None
        if len(points) == 1:
            label, marker = f"{label}: {values[0]:.4g}", "o"
        axes.plot(epochs, values, label=label, color=color, lw=2, marker=marker, ms=8)
    figures.whole_numbers(axes, "epoch")


def _draw_example(page: EvaluationPage, one: Example) -> list[Image.Image]:
    """Return a picture for each of KINDS."""
    drawn = (
        one.image_HWC,
        overlay(one.image_HWC, one.target_HW, page.colors_K3, page.ignore_id),
        overlay(one.image_HWC, one.prediction_HW, page.colors_K3, page.ignore_id),
        errors(one.image_HWC, one.target_HW, one.prediction_HW, page.ignore_id),
    )
    return [thumbnail(pixels, PICTURE_PX) for pixels in drawn]


def _draw_contrast(page: EvaluationPage, one: Contrast) -> list[tuple[str, str]]:
    """Return caption and picture of the image, the target, and what either version says."""
    verdict = page.run.verdict
    named = {
        "target": one.target_HW,
        f"{verdict.rival_title}: mIoU {100 * one.rival_miou:.1f} %": one.rival_HW,
        f"version {verdict.version}: mIoU {100 * one.miou:.1f} %": one.prediction_HW,
    }
    shown = {"image": one.image_HWC} | {
        caption: overlay(one.image_HWC, ids_HW, page.colors_K3, page.ignore_id) for caption, ids_HW in named.items()
    }
    return [(caption, _uri(thumbnail(pixels, PICTURE_PX))) for caption, pixels in shown.items()]


def _draw_seen(page: EvaluationPage, sample: SeenSample) -> dict[str, Any]:
    shown = []
    for number, view in enumerate(sample.views):
        drawn = image_above_classes(view.image_HWC, view.mask_HW, page.colors_K3, page.ignore_id)
        if number == 0:
            outlined(drawn, sample.boxes)
        drawn.thumbnail((PICTURE_PX, 2 * PICTURE_PX))
        shown.append((view.caption, _uri(drawn)))
    return {"title": sample.title, "pictures": shown}


def _overview(drawn: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return the worst, a typical and the best example under one another."""
    return sheet([drawn[rank] for rank in sorted({0, len(drawn) // 2, len(drawn) - 1})])


def _uri(picture: Image.Image) -> str:
    return as_uri(picture, QUALITY)
