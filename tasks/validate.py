"""Stage validate: look at every file of the set, deal the groups to splits, write the manifest."""

from __future__ import annotations

from pathlib import Path

from segmill import progress
from segmill.data.splitting.shares import SplitShares
from segmill.data.storage import journal
from segmill.data.validation.checks import validate_dataset
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace


def validate(workspace: Workspace, params: Params) -> None:
    """Write ``data/manifest.parquet``, and a page of all issues beside the progress.

    IssuesFound names every kind of issue that is not accepted.
    """
    journal.finish(workspace.root / params.data.path)  # an interrupted `segmill data add` is no half set
    split = params.split
    with replacing(workspace.manifest) as draft:
        validate_dataset(
            workspace.root / params.data.path,
            draft,
            shares=SplitShares(split.val, split.test, split.seed),
            accept=params.data.accept,
            page=issues_page(workspace),
            told=progress.counter(workspace.count("validate")),
        )


def issues_page(workspace: Workspace) -> Path:
    """Where the page with all issues lies."""
    return workspace.scratch / "checks" / "index.html"
