"""The job of writing the page of a run, after its verdict. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.reports.run_facts import RunFacts

if TYPE_CHECKING:
    from segmill.metrics.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class ReportJob:
    """Write index.html and overview.png into ``reports_dir``, beside what was measured.

    Args:
        reports_dir: with metrics.json, counts.npz and examples.npz.
        augmented_dir: the recipe and the extra samples that the members were trained with.
        sealed: groups of test that no figure and no picture shows.
        predictions: of the version that was judged and of its rival on test, as ``ScoreJob`` keeps them; None where
            there is no rival, or they are not kept any more.
    """

    reports_dir: Path
    ensemble_dir: Path
    packed_dir: Path
    augmented_dir: Path
    run: RunFacts
    predictions: tuple[Path, Path] | None
    sealed: tuple[str, ...] = ()


def report_on_ray(job: ReportJob) -> dict[str, Interval]:
    """Be what Ray runs; return the ensemble's scores with their intervals."""
    from segmill.evaluation.report import write_report

    return write_report(job)
