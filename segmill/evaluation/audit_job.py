"""The job of auditing labels, and what comes of it. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A model and the samples it never trained on.

    Attributes:
        model: an ensemble folder or a member folder.
        splits: train, val, test: which samples it is asked about.
        groups: only those of these groups; None is all.
    """

    model: Path
    splits: tuple[str, ...]
    groups: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True)
class AuditJob:
    """Audit the labels of a set, and write ``index.html`` and ``audit.csv``.

    Args:
        border_crop_px: top, bottom, left, right: what training never saw of an image.
        out_dir: made where it is missing; files of these two names are replaced, others stay.
        top: samples drawn on the page. The list holds all that were kept.
        progress_path: a JSON file that says how far it is; None for none.
    """

    sources: tuple[Source, ...]
    raw_dir: Path
    manifest_path: Path
    border_crop_px: tuple[int, int, int, int] = (0, 0, 0, 0)
    out_dir: Path
    top: int
    progress_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What a terminal shows of an audit.

    Attributes:
        page, table: the two files.
        samples: split to how many were looked at.
        suspicious: how many samples reach LEAST_SCORE.
        unknown: classes that a model does not know.
        first: the first rows, by audit_report.COLUMNS, and ``regions`` of the row's sample.
    """

    page: Path
    table: Path
    samples: dict[str, int]
    suspicious: int
    unknown: list[str]
    first: list[dict[str, Any]]


def audit_on_ray(job: AuditJob) -> AuditResult:
    """Be what Ray runs."""
    from segmill.evaluation.audit_report import audit_and_report

    return audit_and_report(job)
