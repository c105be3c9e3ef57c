"""`segmill predict`: image files through a registered model to masks of class ids, and overlays to look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import HERE, WorkspaceOption, open_workspace, say, tell
from segmill.errors import InputError
from segmill.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from segmill.params import Params

OVERLAY_SHARE = 0.5


def predict_command(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    to: Annotated[Path, typer.Option(help="Folder for the masks (PNG of class ids) and overlays.")] = Path(
        "predictions"
    ),
    model: Annotated[
        str, typer.Option("--model", "--version", help="An alias or a version number of the registered model.")
    ] = "champion",
    workspace: WorkspaceOption = HERE,
) -> None:
    """Segment images with the champion."""
    space, params = open_workspace(workspace)
    masks = []
    for path in predict(space, params, model, images, to):
        say(str(path))
        masks.append(path)
        tell(masks=masks)


def predict(workspace: Workspace, params: Params, model: str, images: list[Path], folder: Path) -> Iterator[Path]:
    """Write ``NAME.png`` (class ids) and ``NAME-overlay.png`` into ``folder`` for each image; yield each mask's path.

    Args:
        workspace: whose registry and class colours are used.
        params: of the workspace.
        model: an alias, such as ``champion``, or a version number.
        images: files.
        folder: made where it is missing.

    Raises:
        InputError: there is no such version, an image can't be read, or a result would replace an image or another
            image's result.
        SignatureError: the version is not signed, not by a trusted key, or not what was signed.
        SegmillError: the version does not load or fails to predict.
    """
    import numpy as np
    from PIL import Image

    from flows.environment import tracking_uri
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.promotion import registry
    from segmill.promotion.keys import trusted_keys
    from segmill.promotion.registered import loaded
    from segmill.reports.pictures import palette
    from tasks.register import model_name

    uri, name = tracking_uri(workspace, params), model_name(workspace, params)
    version = registry.version_called(uri, name, model)
    _refuse_to_overwrite(images, folder)
    pixels = [_read(path) for path in images]
    info = read_dataset_info(workspace.root / params.data.path)
    colors = palette(info.colors)
    folder.mkdir(parents=True, exist_ok=True)
    with loaded(uri, name, version, trusted_keys(workspace.root)) as ask:
        for path, image in zip(images, pixels, strict=True):
            image_HWC = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
            (ids_HW,) = ask(image_HWC[None])
            mask = folder / f"{path.stem}.png"
            Image.fromarray(ids_HW).save(mask)
            mixed = OVERLAY_SHARE * colors[ids_HW] + (1 - OVERLAY_SHARE) * image_HWC
            Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{path.stem}-overlay.png")
            yield mask


def _refuse_to_overwrite(images: list[Path], folder: Path) -> None:
    results: dict[Path, Path] = {}
    for image in images:
        for result in (folder / f"{image.stem}.png", folder / f"{image.stem}-overlay.png"):
            if (other := results.setdefault(result, image)) != image:
                raise InputError(f"{other} and {image} would both be written to {result}; predict them one by one, "
                                 "with another --to")  # fmt: skip
    replaced = {result.resolve() for result in results}
    for image in images:
        if image.resolve() in replaced:
            raise InputError(f"{image} would be replaced by its mask; name another folder with --to")


def _read(path: Path) -> np.ndarray:
    from segmill.data.storage.images import read_deep_image

    try:
        return read_deep_image(path)
    except InputError as fault:
        raise InputError(f"{path}: {fault.what}", fault.fix) from None
