"""`segmill predict`: images through a registered model to masks of class ids; single files with overlays to look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import HERE, WorkspaceOption, open_workspace, out, say, tell
from segmill.errors import InputError
from segmill.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from segmill.params import Params

OVERLAY_SHARE = 0.5


def predict_command(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGES", help="Image files, or a folder, or s3://BUCKET/PREFIX.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A data version of the workspace instead: its first digits, HEAD or HEAD~1.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder for the masks (PNG of class ids), and overlays or scores.")] = Path(
        "predictions"
    ),
    model: Annotated[
        str, typer.Option("--model", "--version", help="An alias or a version number of the registered model.")
    ] = "champion",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of a folder, a prefix or a data version: processes, at most.")
    ] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Segment images, or whole folders on Ray, with the champion."""
    source = one_source(sources or [], data)
    space, params = open_workspace(workspace)
    if source is not None:
        score_source(space, params, source, to, model, workers)
        return
    masks, anomalies = [], []
    for path, anomaly in predict(space, params, model, [Path(name) for name in sources or []], to):
        say(f"{path}{_anomaly(anomaly)}")
        masks.append(path)
        anomalies.append(anomaly)
        tell(masks=masks, anomalies=anomalies)


def _anomaly(found: dict[str, Any] | None) -> str:
    """Say how unusual an image is; nothing where the version has no detector."""
    if found is None:
        return ""
    return f"  p-value {found['p_value']:.3g}{': unusual, the model abstains' if found['abstain'] else ''}"


def one_source(sources: list[str], data: str | None) -> str | None:
    """Return the folder, prefix or data version (``data:VERSION``) that is scored as a whole; None: they are files.

    Raises InputError where there is a folder beside something else.
    """
    from segmill.serving.batch.sources import DATA, S3

    if not sources and data is None:
        raise typer.BadParameter("name image files, a folder, s3://BUCKET/PREFIX, or --data VERSION")
    whole = [name for name in sources if name.startswith(S3) or Path(name).is_dir()]
    if data is not None:
        whole.append(f"{DATA}{data}")
    if not whole:
        return None
    if len(whole) > 1 or len(sources) + (data is not None) > 1:
        raise InputError(f"{whole[0]} is scored as a whole, alone", "give each folder or prefix a command of its own")
    return whole[0]


def score_source(workspace: Workspace, params: Params, source: str, to: Path, model: str, workers: int | None) -> None:
    """Score a whole source, and say what came of it. InputError where an image has no mask."""
    from flows.display import clock
    from flows.score import run_score

    found = run_score(workspace, params, source, to.resolve(), model, workers, out)
    tell(**found)
    say(
        f"{found['images']} images by version {found['version']} of {found['model']}: {found['predicted']} predicted, "
        f"{found['known']} known before, in {clock(found['seconds'])}"
    )
    say(found["scores"])
    if lacking := found["unreadable"] + found["failed"]:
        raise InputError(
            f"{lacking} of {found['images']} images have no mask ({'; '.join(found['reasons'])}"
            f"{' ...' if lacking > len(found['reasons']) else ''})",
            "scores.parquet says why, in the column reason",
        )


def predict(
    workspace: Workspace, params: Params, model: str, images: list[Path], folder: Path
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Write ``NAME.png`` (class ids) and ``NAME-overlay.png`` into ``folder`` for each image.

    Yields each mask's path and how unusual the image is, as ``Replayed.judged`` has it.

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
            (ids_HW,), (anomaly,) = ask.judged(image_HWC[None])
            mask = folder / f"{path.stem}.png"
            Image.fromarray(ids_HW).save(mask)
            mixed = OVERLAY_SHARE * colors[ids_HW] + (1 - OVERLAY_SHARE) * image_HWC
            Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{path.stem}-overlay.png")
            yield mask, anomaly


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
