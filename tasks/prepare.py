"""Stage prepare: decode every sample once into memory-mapped splits; what an earlier version decoded is taken over."""

from __future__ import annotations

from segmill import progress
from segmill.data.packing.pack import pack
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
            size=how.size_px,
            resize=how.resize,
            overlap_px=how.overlap_px,
            border_crop_px=how.border_crop_px,
            grayscale=how.grayscale,
            clahe=how.clahe,
            store_dir=workspace.chunks,
            code=read_code(workspace, "shards"),  # what was packed by other code is packed again
            progress=progress.counter(workspace.count("prepare")),
        )
