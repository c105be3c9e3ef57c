"""What an audit leaves: a page to look at, which is one file, and a list that a labelling team works from."""

from __future__ import annotations

import base64
import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segmill import progress
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.schema.mask_values import palette
from segmill.evaluation.audit import Audited, Evidence, Region, Source, Suspect, audit
from segmill.evaluation.report import errors, overlay
from segmill.files import write_atomically

COLUMNS = (
    "rank", "sample", "split", "group", "image", "mask", "x", "y", "width", "height",
    "given", "suggested", "pixels", "confidence", "score", "sample_score",
)  # fmt: skip
KINDS = ("image", "label", "prediction", "disagreement")
# Pictures larger than this are shrunk, smaller ones enlarged, so that boxes and numbers can be read.
PICTURE_PX = 480
QUALITY = 85
BOXES = 5  # regions of one sample that are numbered
BOX = (255, 255, 255)
TABLE_ROWS = 10


def audit_and_report(
    sources: Sequence[Source],
    raw_dir: Path,
    manifest_path: Path,
    out_dir: Path,
    *,
    top: int,
    border_crop_px: tuple[int, int, int, int] = (0, 0, 0, 0),
    progress_path: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Audit, write ``index.html`` and ``audit.csv`` into ``out_dir``, and return what a terminal shows of it.

    Args:
        sources, raw_dir, manifest_path, border_crop_px, device: as for ``audit``.
        out_dir: made where it is missing; files of these two names are replaced, others stay.
        top: samples drawn on the page. The list holds all that were kept.
        progress_path: a JSON file that says how far it is.

    Returns:
        ``page``, ``table``: the paths. ``samples``: split to how many were looked at. ``suspicious``: how many
        samples reach LEAST_SCORE. ``unknown``: classes that a model does not know. ``first``: the first
        rows, by COLUMNS.

    Raises:
        InputError: as for ``audit``.
    """
    count = progress.counter(progress_path) if progress_path else lambda done, total: None
    found = audit(
        sources, raw_dir, manifest_path, draw=top, border_crop_px=border_crop_px, device=device, progress=count
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    page, table = out_dir / "index.html", out_dir / "audit.csv"
    write_atomically(table, csv_text(found))
    write_atomically(page, page_text(found))
    best = [{**row, "regions": len(one.regions)} for one, row in _first_rows(found, TABLE_ROWS)]
    return {
        "page": str(page), "table": str(table), "samples": found.samples, "suspicious": found.suspicious,
        "unknown": found.unknown, "first": best,
    }  # fmt: skip


def csv_text(found: Audited) -> str:
    """Return the list: a row per region, samples by falling score and in each its regions likewise.

    Boxes are in px of the original image, classes by name; ``rank`` counts samples from 1.
    """
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for rank, suspect in enumerate(found.suspects, 1):
        writer.writerows(_row(rank, suspect, region, found.info) for region in suspect.regions)
    return text.getvalue()


def page_text(found: Audited) -> str:
    """Return the page: a card per drawn suspect with image, label, prediction and disagreement, all in one file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    classes = found.info.classes
    drawn = [(rank, one) for rank, one in enumerate(found.suspects, 1) if one.id in found.evidence]
    return page.get_template("audit.html.jinja").render(
        name=found.info.name,
        classes=classes,
        samples=found.samples,
        suspicious=found.suspicious,
        unknown=found.unknown,
        listed=len(found.suspects),
        pairs=_pairs(found),
        cards=(_card(rank, one, found.evidence[one.id], found.info) for rank, one in drawn),
        drawn=len(drawn),
    )


def _first_rows(found: Audited, most: int) -> Iterator[tuple[Suspect, dict[str, Any]]]:
    """Yield the first suspects, each with the row of its first region."""
    for rank, suspect in enumerate(found.suspects[:most], 1):
        yield suspect, _row(rank, suspect, suspect.regions[0], found.info)


def _row(rank: int, suspect: Suspect, region: Region, info: DatasetInfo) -> dict[str, Any]:
    names = info.class_names
    values = (
        rank, suspect.id, suspect.split, suspect.group, suspect.image, suspect.mask,
        region.x, region.y, region.width, region.height, names[region.given], names[region.suggested], region.pixels,
        round(region.confidence, 4), round(region.score, 4), round(suspect.score, 4),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _pairs(found: Audited, most: int = 8) -> list[dict[str, Any]]:
    """Return the commonest changes of class: given, suggested, and in how many of the listed samples."""
    seen = Counter(pair for one in found.suspects for pair in {(r.given, r.suggested) for r in one.regions})
    return [
        {"given": found.info.classes[given], "suggested": found.info.classes[suggested], "samples": count}
        for (given, suggested), count in seen.most_common(most)
    ]


def _card(rank: int, suspect: Suspect, evidence: Evidence, info: DatasetInfo) -> dict[str, Any]:
    colors = palette(info.colors)
    image, label, ignore_id = evidence.image_HWC, evidence.label_HW, info.ignore_id
    labelled = np.where(label == ignore_id, label, np.uint8(0))
    pictures = (
        image,
        overlay(image, label, colors, ignore_id),
        overlay(image, evidence.predicted_HW, colors, ignore_id),
        errors(image, labelled, np.where(label == ignore_id, label, evidence.flagged_HW), ignore_id),
    )
    boxed = suspect.regions[:BOXES]
    return {
        "rank": rank,
        "suspect": suspect,
        "regions": [
            {"region": region, "given": info.classes[region.given], "suggested": info.classes[region.suggested]}
            for region in boxed
        ],
        "more": len(suspect.regions) - len(boxed),
        "pictures": [
            {"kind": kind, "data": _as_data(picture, boxed if kind != "image" else ())}
            for kind, picture in zip(KINDS, pictures, strict=True)
        ],
    }


def _as_data(pixels: NDArray[np.uint8], regions: Iterable[Region]) -> str:
    """Return pixels with numbered boxes as a JPEG in a data URI."""
    picture = Image.fromarray(pixels)
    scale = PICTURE_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for number, region in enumerate(regions, 1):
        left, top = scale * region.x, scale * region.y
        right, bottom = scale * (region.x + region.width) - 1, scale * (region.y + region.height) - 1
        draw.rectangle((left, top, right, bottom), outline=BOX, width=2)
        corner = (min(left, picture.width - 16), min(top, picture.height - 18))
        draw.rectangle((*corner, corner[0] + 15, corner[1] + 17), fill=BOX)
        draw.text((corner[0] + 4, corner[1] + 1), str(number), fill=(0, 0, 0), font_size=14)
    content = BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
