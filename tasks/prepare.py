"""Stage prepare: decode every sample once into memory-mapped splits; what an earlier version decoded is reused."""

from __future__ import annotations

from segmill import progress
from segmill.data.packing.pack import pack
from segmill.data.packing.resizing import Resizing
from segmill.data.packing.shards import Preparation
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.inputs import read_code


def prepare(workspace: Workspace, params: Params) -> None:
    """Write ``data/packed``: train enhanced, cropped and resized as `prepare` says, val and test as they are."""
    how = params.prepare
    with replacing(workspace.packed) as draft:
        pack(
            workspace.root / params.data.path,
            workspace.manifest,
            draft,
            train=Preparation(
                Resizing(how.size_px, how.resize, how.overlap_px, how.border_crop_px), how.grayscale, how.clahe
            ),
            calibration=params.split.calibration,
            by=params.anomaly.by,
            store_dir=workspace.shards,
            code=read_code(workspace, "shards"),  # what was packed by other code is packed again
            on_progress=progress.counter(workspace.count("prepare")),
        )
