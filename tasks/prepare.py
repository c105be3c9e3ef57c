"""Stage prepare: decode every sample once into memory-mapped splits."""

from __future__ import annotations

from segmill.data.packing import pack
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.stage import replacing


def prepare(workspace: Workspace, params: Params) -> None:
    """Write ``data/packed``: train at ``prepare.size_px``, val and test at their own size."""
    with replacing(workspace.packed) as draft:
        pack(workspace.root / params.data.path, workspace.manifest, draft, size=params.prepare.size_px)
