"""Stage validate: check every file of the set, assign the groups to splits, write the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segmill import progress
from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.splitting.shares import SplitShares
from segmill.data.storage import journal
from segmill.data.validation.checks import validate_dataset
from segmill.data.validation.leaks import Pair
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace


def validate(workspace: Workspace, params: Params) -> None:
    """Write ``data/manifest.parquet``, and a page of all issues beside the progress.

    IssuesFound names every kind of issue that is not accepted.
    """
    journal.finish(workspace.root / params.data.path)  # an interrupted `segmill data add` is no half set
    raw_dir, split = workspace.root / params.data.path, params.split

    def write_page(info: DatasetInfo, samples: int, issues: Sequence[Issue], pairs: Sequence[Pair]) -> None:
        from segmill.data.validation.issues_page import write_issues_page

        write_issues_page(issues_page(workspace), raw_dir, info, samples, issues, pairs, params.data.accept)

    with replacing(workspace.manifest) as draft:
        validate_dataset(
            raw_dir,
            draft,
            shares=SplitShares(split.val, split.test, split.seed),
            sealed=split.sealed,
            calibration=split.calibration,
            accept=params.data.accept,
            on_issues=write_page,
            on_progress=progress.counter(workspace.count("validate")),
        )


def issues_page(workspace: Workspace) -> Path:
    """Path of the page with all issues."""
    return workspace.scratch / "checks" / "index.html"
