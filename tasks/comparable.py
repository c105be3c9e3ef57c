"""What the promotion at the end of a run would refuse, refused when the data are packed, before any training."""

from __future__ import annotations

from collections.abc import Sequence

from segmill.data.packing.packed import PackedSplit
from segmill.data.schema.manifest import manifest_info, read_manifest
from segmill.data.schema.slices import slice_values
from segmill.errors import InputError
from segmill.params import Params
from segmill.promotion import registry
from segmill.promotion.class_map import CommonClasses, common_classes
from segmill.workspace import Workspace


def slices_of(workspace: Workspace, params: Params, ids: Sequence[str]) -> dict[str, list[str]]:
    """Return, for each column of promotion.guards.slices, the value of each of these samples.

    InputError names a column that is none, and those that there are.
    """
    return slice_values(workspace.manifest, ids, params.promotion.guards.slices)


def comparable_classes(workspace: Workspace, uri: str, model: str, version: str | None) -> CommonClasses:
    """Return the classes on which a new version is compared with ``version``: today's own where that is None.

    InputError where the two class maps differ, and dataset.yaml does not say what became of a class.
    """
    info = manifest_info(read_manifest(workspace.manifest))
    known = registry.known_classes(uri, model, version) if version else info.class_names
    try:
        return common_classes(info.class_names, known, info.former_classes)
    except InputError as error:
        raise InputError(f"Version {version} of {model} can't be compared: {error}") from error


def refuse_what_cannot_be_judged(workspace: Workspace, params: Params, uri: str, model: str) -> None:
    """Raise InputError where the champion's classes or the slices leave nothing to compare."""
    champion = registry.aliased(uri, model, registry.CHAMPION)
    comparable_classes(workspace, uri, model, champion.version if champion else None)
    slices_of(workspace, params, PackedSplit(workspace.packed / "test").ids)
