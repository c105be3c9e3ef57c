"""Stage validate: look at every file of the set, deal the groups to splits, write the manifest."""

from __future__ import annotations

from segmill.data.checks import validate_dataset
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.stage import replacing


def validate(workspace: Workspace, params: Params) -> None:
    """Write ``data/manifest.parquet``. InputError lists every bad file of the set at once."""
    split = params.split
    with replacing(workspace.manifest) as draft:
        validate_dataset(workspace.root / params.data.path, draft, val=split.val, test=split.test, seed=split.seed)
