"""What an audit leaves: a page to look at, which is one file, and a list that a labelling team works from."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from typing import Any

from segmill import progress
from segmill.data.schema.manifest import DatasetInfo
from segmill.evaluation.audit import Audited, Evidence, Region, Suspect, audit
from segmill.evaluation.audit_job import AuditJob, AuditResult
from segmill.files import write_atomically
from segmill.names import for_spreadsheet
from segmill.reports.audit_page import AuditCard, AuditPage, ClassPair, NamedClass, SuggestedChange, write_audit_page
from segmill.reports.pictures import palette

COLUMNS = (
    "rank", "sample", "split", "group", "image", "mask", "x", "y", "width", "height",
    "given", "suggested", "pixels", "confidence", "score", "sample_score",
)  # fmt: skip
BOXES = 5  # regions of one sample that are numbered on its pictures
TABLE_ROWS = 10


def audit_and_report(job: AuditJob) -> AuditResult:
    """Audit, write the page and the list, and return what a terminal shows of it.

    Raises:
        InputError: as for ``audit``.
    """
    count = progress.counter(job.progress_path)
    found = audit(
        job.sources,
        job.raw_dir,
        job.manifest_path,
        draw=job.top,
        border_crop_px=job.border_crop_px,
        on_progress=count,
    )
    job.out_dir.mkdir(parents=True, exist_ok=True)
    page, table = job.out_dir / "index.html", job.out_dir / "audit.csv"
    write_atomically(table, csv_text(found))
    write_audit_page(page_of(found), page)
    best = [{**row, "regions": len(one.regions)} for one, row in _first_rows(found, TABLE_ROWS)]
    return AuditResult(
        page=page,
        table=table,
        samples=found.samples,
        suspicious=found.suspicious,
        unknown=found.unknown,
        first=best,
    )


def csv_text(found: Audited) -> str:
    """Return the list: a row per region, samples by falling score and in each its regions likewise.

    Boxes are in px of the original image, classes by name; ``rank`` counts samples from 1. A name that a spreadsheet
    would run as a formula begins with an apostrophe.
    """
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for rank, suspect in enumerate(found.suspects, 1):
        for region in suspect.regions:
            row = _row(rank, suspect, region, found.info)
            writer.writerow({key: for_spreadsheet(one) if isinstance(one, str) else one for key, one in row.items()})
    return text.getvalue()


def page_of(found: Audited) -> AuditPage:
    """Return what the page shows: a card for each suspect whose pixels were kept."""
    info = found.info
    drawn = [(rank, one) for rank, one in enumerate(found.suspects, 1) if one.id in found.evidence]
    return AuditPage(
        name=info.name,
        classes=_named(info),
        colors_K3=palette(info.colors),
        ignore_id=info.ignore_id,
        samples=found.samples,
        suspicious=found.suspicious,
        listed=len(found.suspects),
        drawn=len(drawn),
        unknown=found.unknown,
        pairs=_pairs(found),
        cards=[_card(rank, one, found.evidence[one.id], info) for rank, one in drawn],
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


def _named(info: DatasetInfo) -> list[NamedClass]:
    return [NamedClass(one.name, one.color) for one in info.classes]


def _pairs(found: Audited, most: int = 8) -> list[ClassPair]:
    """Return the most frequent changes of class."""
    classes = _named(found.info)
    seen = Counter(pair for one in found.suspects for pair in {(r.given, r.suggested) for r in one.regions})
    return [
        ClassPair(classes[given], classes[suggested], count) for (given, suggested), count in seen.most_common(most)
    ]


def _card(rank: int, suspect: Suspect, evidence: Evidence, info: DatasetInfo) -> AuditCard:
    classes, boxed = _named(info), suspect.regions[:BOXES]
    return AuditCard(
        rank=rank,
        id=suspect.id,
        split=suspect.split,
        group=suspect.group,
        mask=suspect.mask,
        score=suspect.score,
        changes=[
            SuggestedChange(
                classes[region.given],
                classes[region.suggested],
                (region.y, region.x, region.height, region.width),
                region.pixels,
                region.confidence,
                region.score,
            )
            for region in boxed
        ],
        more=len(suspect.regions) - len(boxed),
        image_HWC=evidence.image_HWC,
        label_HW=evidence.label_HW,
        prediction_HW=evidence.predicted_HW,
        flagged_HW=evidence.flagged_HW,
    )
