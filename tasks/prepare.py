"""Stage prepare: decode every sample once into memory-mapped splits; what an earlier version decoded is taken over."""

from __future__ import annotations

from segmill import progress
from segmill.data.packing.pack import pack
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace

# The modules that make pixels: what was packed by other code of these is packed again.
PIXELS = (
    "segmill.data.packing.shards",
    "segmill.data.storage.images",
    "segmill.data.packing.resizing",
    "segmill.enhancement",
)


def prepare(workspace: Workspace, params: Params) -> None:
    """Write ``data/packed``: train enhanced, cropped and resized as `prepare` says, val and test as they are."""
    how = params.prepare
    fingerprint = (workspace.code / "prepare").read_text().splitlines()
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
            code="\n".join(line for line in fingerprint if line.split()[0] in PIXELS),
            progress=progress.counter(workspace.count("prepare")),
        )
