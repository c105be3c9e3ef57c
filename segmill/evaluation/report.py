"""The page a person reads: figures, curves and pictures of one evaluation, without a request to anywhere."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segmill.data.loading.extras import Origin
from segmill.data.loading.seen import TrainingView
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.data.schema.mask_values import palette
from segmill.ensembling.predict import read_ensemble
from segmill.evaluation.scoring import Scored, evaluate, read_counts
from segmill.metrics import scores
from segmill.metrics.intervals import Gain, gain_interval
from segmill.renamed_keys import with_new_names

# Pictures wider than this are shrunk for the page.
KINDS = ("image", "truth", "prediction", "errors")
PICTURE_PX = 640
WRONG = (255, 45, 96)
UNLABELLED = (128, 128, 128)
# Okabe & Ito, "Color Universal Design", 2008, without the yellow that white swallows: one colour per member.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
THEMES = {"light": ("#1d2430", "#d8dde6"), "dark": ("#e7ebf2", "#3a4352")}
TRAINING_SAMPLES = 3  # drawn as training saw them, and as many extra ones of each kind
# Column of curves.csv: title and factor.
CURVES = {"loss": ("Training loss", 1), "val_miou": ("mIoU on val, %", 100)}


def evaluate_and_report(
    ensemble_dir: Path | str,
    packed_dir: Path | str,
    augmented_dir: Path | str,
    out_dir: Path | str,
    *,
    overlays: int,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the test split and write all of ``reports``; return the content of metrics.json.

    Args:
        ensemble_dir: the ensemble folder.
        packed_dir: packed splits.
        augmented_dir: the recipe and the extra samples that the members were trained with.
        out_dir: a temporary folder that the caller renames when everything is in it.
        overlays: how many test images are drawn: the worst, middling and best third each.
        device: as for ``load_member``.

    Raises:
        InputError: as for ``evaluate``.
    """
    ensemble_dir, packed_dir, augmented_dir, out_dir = map(Path, (ensemble_dir, packed_dir, augmented_dir, out_dir))
    metrics = evaluate(ensemble_dir, packed_dir, out_dir, examples=overlays, device=device)
    write_report(out_dir, ensemble_dir, packed_dir, augmented_dir)
    return metrics


def write_report(out_dir: Path, ensemble_dir: Path, packed_dir: Path, augmented_dir: Path) -> None:
    """Write index.html and figures/ beside what ``evaluate`` left in ``out_dir``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    metrics = json.loads((out_dir / "metrics.json").read_text())
    info, scored = read_pack(packed_dir), read_counts(out_dir / "counts.npz")
    members = {
        name: json.loads((ensemble_dir / "members" / name / "member.json").read_text()) for name in metrics["members"]
    }
    figures = out_dir / "figures"
    figures.mkdir(exist_ok=True)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page.filters["score"] = lambda value: "-" if value is None else f"{100 * value:.1f}"
    text = page.get_template("report.html.jinja").render(
        name=info.name,
        metrics=metrics,
        members=members,
        tta_hflip=read_ensemble(ensemble_dir)["flips"],
        data_version=_data_versions(members),
        classes=_class_rows(info, scored),
        versus=_versus_best_member(scored),
        confusion=_confusion_rows(scored.ensemble),
        curves=_draw_curves(ensemble_dir, list(members), figures),
        training=_draw_training(packed_dir, augmented_dir, ensemble_dir, members, figures),
        examples=list(_draw_examples(out_dir, PackedSplit(packed_dir / metrics["split"]), info, scored, figures)),
    )
    (out_dir / "index.html").write_text(text)
    _draw_overview(len(list(figures.glob("example-*-image.png"))), figures)


def _data_versions(members: dict[str, Any]) -> str:
    return ", ".join(sorted({member["data_version"] or "unversioned" for member in members.values()}))


def _class_rows(info: PackInfo, scored: Scored) -> list[dict[str, Any]]:
    """Return name, colour and share of the labelled pixels per class."""
    pixels = scores.total(scored.ensemble).sum(axis=1)
    return [
        {"name": name, "color": color, "share": float(share)}
        for name, color, share in zip(info.class_names, info.colors, pixels / max(int(pixels.sum()), 1), strict=True)
    ]


def _versus_best_member(scored: Scored) -> tuple[str, Gain]:
    """Return the name of the member with the best mIoU and the ensemble's gain over it."""
    best = max(scored.members, key=lambda name: scores.miou(scored.members[name]))
    gain = gain_interval(scored.ensemble, scored.members[best], scored.groups, confidence=0.95, seed=0)
    return best, gain


def _confusion_rows(counts_NKK: NDArray[np.int64]) -> list[list[float | None]]:
    """Return for each true class the shares it was predicted as; None for a class without a pixel."""
    table = scores.total(counts_NKK).astype(np.float64)
    return [
        [None if math.isnan(share) else float(share) for share in scores.ratio(row, np.full_like(row, row.sum()))]
        for row in table
    ]


def _draw_curves(ensemble_dir: Path, names: list[str], figures: Path) -> list[dict[str, str]]:
    """Draw the ``CURVES`` of the members' curves.csv, once for each theme; return file stems and titles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = {name: _read_curves(ensemble_dir / "members" / name / "curves.csv") for name in names}
    drawn = []
    for column, (title, factor) in CURVES.items():
        points = {name: _points(rows[name], column, factor) for name in names}
        if not any(points.values()):
            continue
        for theme, (ink, grid) in THEMES.items():
            figure = Figure(figsize=(5.2, 3.1), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot(facecolor="none")
            for index, (name, line) in enumerate(points.items()):
                epochs, values = [epoch for epoch, _ in line], [value for _, value in line]
                color, marker = LINES[index % len(LINES)], "o" if len(line) == 1 else None
                axes.plot(epochs, values, label=name, color=color, lw=2, marker=marker)
            axes.set_xlabel("epoch", color=ink)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.tick_params(colors=ink, length=0)
            axes.grid(color=grid, lw=0.7)
            axes.spines[:].set_visible(False)
            axes.legend(frameon=False, labelcolor=ink, fontsize=9)
            figure.savefig(figures / f"curve-{column}-{theme}.png", dpi=160, transparent=True)
        drawn.append({"stem": f"figures/curve-{column}", "title": title})
    return drawn


def _read_curves(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _points(rows: list[dict[str, str]], column: str, factor: float) -> list[tuple[int, float]]:
    return [(int(row["epoch"]), factor * float(row[column])) for row in rows if row.get(column)]


def _draw_examples(
    out_dir: Path, samples: PackedSplit, info: PackInfo, scored: Scored, figures: Path
) -> Iterator[dict[str, Any]]:
    """Draw image, truth, prediction and errors of the kept predictions; yield captions and file names."""
    mious = np.array([scores.miou(counts) for counts in scored.ensemble])
    colors = palette(info.colors)
    with np.load(out_dir / "examples.npz", allow_pickle=False) as predictions:
        for rank, key in enumerate(predictions.files):
            index = int(key)
            image, truth, prediction = samples.image(index), samples.mask(index), predictions[key]
            pictures = (
                image,
                overlay(image, truth, colors, info.ignore_id),
                overlay(image, prediction, colors, info.ignore_id),
                errors(image, truth, prediction, info.ignore_id),
            )
            for kind, picture in zip(KINDS, pictures, strict=True):
                drawn = Image.fromarray(picture)
                drawn.thumbnail((PICTURE_PX, PICTURE_PX))
                drawn.save(figures / f"example-{rank:02d}-{kind}.png")
            yield {
                "stem": f"figures/example-{rank:02d}",
                "id": samples.ids[index],
                "group": samples.groups[index],
                "place": int((mious < mious[index]).sum()) + 1,
                "miou": float(mious[index]),
                "accuracy": scores.accuracy(scored.ensemble[index]),
                "kinds": KINDS,
            }


def draw_sample(view: TrainingView, index: int, epoch: int | None) -> Image.Image:
    """Draw a sample as it is packed (``epoch`` None) or as training saw it: the image, below it tinted by class."""
    image, mask = view.original(index) if epoch is None else view.seen(index, epoch)
    tinted = overlay(image, mask, palette(view.info.colors), view.info.ignore_id)
    return Image.fromarray(np.vstack([image, tinted]))


def draw_beside(view: TrainingView, index: int, epoch: int) -> Image.Image:
    """Draw a sample as it is packed and, on its right, as training saw it in ``epoch``."""
    both = [draw_sample(view, index, shown) for shown in (None, epoch)]
    gap = 4
    width, height = sum(one.width for one in both) + gap, max(one.height for one in both)
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(both[0], (0, 0))
    sheet.paste(both[1], (both[0].width + gap, 0))
    return sheet


def say_origin(origin: Origin, class_names: tuple[str, ...]) -> str:
    """Say in a line where an extra sample comes from."""
    names = [class_names[class_id] for class_id in origin.classes]
    if origin.kind == "balance":
        return f"{origin.target} again, for {', '.join(names)}"
    pasted = (f"{name} of {source}" for name, source in zip(names, origin.source, strict=True))
    return f"{origin.target} with {', '.join(pasted)}"


def _draw_training(
    packed_dir: Path, augmented_dir: Path, ensemble_dir: Path, members: dict[str, Any], figures: Path
) -> dict[str, Any] | None:
    """Draw some train samples as the first network saw them in its first, middle and last epoch, and extra ones."""
    name = next((name for name, facts in members.items() if facts["kind"] == "network"), None)
    if name is None:
        return None
    train = with_new_names("train", members[name]["params"]["train"])
    epochs = json.loads((ensemble_dir / "members" / name / "metrics.json").read_text())["epochs"]
    facts: dict[str, Any] = {key: train.get(key) for key in ("seed", "batch_size", "crop_size")}
    view = TrainingView(packed_dir, augmented_dir, **facts)
    shown = sorted({0, epochs // 2, epochs - 1})
    evenly = np.linspace(0, view.originals - 1, min(TRAINING_SAMPLES, view.originals)).round().astype(int).tolist()
    rows = [_draw_row(view, index, [None, *shown], view.split.ids[index], figures) for index in evenly]
    kept = {kind: 0 for kind in view.policy.extra}
    extra = []
    for origin in view.origins():
        if kept[origin.kind] < TRAINING_SAMPLES:
            kept[origin.kind] += 1
            title = say_origin(origin, view.info.class_names)
            extra.append(_draw_row(view, view.index(origin.id), [None, *shown], title, figures, origin.boxes))
    return {
        "member": name,
        "recipe": view.policy.title,
        "originals": view.originals,
        "made": view.policy.extra,
        "samples": rows,
        "extra": extra,
    }


def _draw_row(
    view: TrainingView,
    index: int,
    epochs: list[int | None],
    title: str,
    figures: Path,
    boxes: list[list[int]] | None = None,
) -> dict[str, Any]:
    """Draw a sample as packed, with ``boxes`` (top, left, height, width in px) around what was pasted, and by epoch."""
    pictures = []
    for epoch in epochs:
        drawn = draw_sample(view, index, epoch)
        if epoch is None:
            for top, left, height, width in boxes or []:
                corners = (left - 2, top - 2, left + width + 1, top + height + 1)
                ImageDraw.Draw(drawn).rectangle(corners, outline=WRONG)
        drawn.thumbnail((PICTURE_PX, 2 * PICTURE_PX))
        file = f"training-{index}-{'packed' if epoch is None else epoch}.png"
        drawn.save(figures / file)
        pictures.append({"file": f"figures/{file}", "kind": "as packed" if epoch is None else f"epoch {epoch}"})
    return {"title": title, "pictures": pictures}


def _draw_overview(count: int, figures: Path) -> None:
    """Put a worst, a middling and a best example under one another: one picture to show elsewhere."""
    rows = [
        [Image.open(figures / f"example-{rank:02d}-{kind}.png") for kind in KINDS]
        for rank in sorted({0, count // 2, count - 1})
    ]
    width, height = (max(getattr(picture, side) for row in rows for picture in row) for side in ("width", "height"))
    gap = 4
    sheet = Image.new("RGB", (len(KINDS) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for place, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (width + gap), place * (height + gap)))
    sheet.save(figures / "overview.png")


def overlay(
    image_HWC: NDArray[np.uint8], ids_HW: NDArray[np.uint8], colors: NDArray[np.uint8], ignore_id: int
) -> NDArray[np.uint8]:
    """Tint each class with its colour over the grey image. A black class (background) stays as it is."""
    grey = image_HWC.mean(axis=2, keepdims=True).repeat(3, axis=2)
    known = ids_HW != ignore_id
    tint = np.full_like(grey, UNLABELLED)
    tint[known] = colors[ids_HW[known]]
    strength = np.where(tint.any(axis=2, keepdims=True), 0.6, 0.0)
    blended: NDArray[np.uint8] = (grey * (1 - strength) + tint * strength).astype(np.uint8)
    return blended


def errors(
    image_HWC: NDArray[np.uint8],
    truth_HW: NDArray[np.uint8],
    prediction_HW: NDArray[np.uint8],
    ignore_id: int,
) -> NDArray[np.uint8]:
    """Mark wrong pixels over the dimmed grey image; unlabelled ones are flat grey."""
    picture: NDArray[np.uint8] = (image_HWC.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.55).astype(np.uint8)
    picture[(truth_HW != prediction_HW) & (truth_HW != ignore_id)] = WRONG
    picture[truth_HW == ignore_id] = UNLABELLED
    return picture
