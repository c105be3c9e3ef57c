"""How a workspace begins: around your own set, or around the built-in brain atlas."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segmill.data.versions import commit_files, create_repository
from segmill.errors import InputError
from segmill.params import read_params, set_params
from segmill.workspace import TEMPLATES, Workspace, template
from tasks.stage import watch_code

IGNORED = ("/.segmill/", "/.dvc-remote/", "/mlartifacts/", "/mlflow.db*", "/ledger.db*", "/predictions/")
LARGEST_SIDE_PX = 512
STREET_COUNT, STREET_PX = 200, (128, 128)


def create(folder: Path, data: Path) -> Workspace:
    """Make a workspace at ``folder`` around a copy of the labelled set ``data``.

    Raises:
        InputError: ``folder`` is a workspace already, or ``data`` is not in the canonical layout.
    """
    from segmill.data.manifest import read_dataset_info

    if (folder / "params.yaml").exists():
        raise InputError(f"{folder} is a workspace already; add to its data/raw and run `segmill retrain` there")
    if not data.is_dir():
        raise InputError(f"--data {data} is no folder; name the one that holds images/, masks/ and dataset.yaml")
    _refuse_unless_empty(folder)
    read_dataset_info(data)
    size = _usual_size(data)
    with _whole_or_nothing(folder):
        _lay_down(folder)
        _copy(data, folder / "data" / "raw")
        set_params(folder / "params.yaml", [f"prepare.size_px={size}"])
        return _finish(folder, f"A workspace around {data.name}")


def create_demo(folder: Path, *, sample: str, more: bool) -> Workspace:
    """Make the demo's workspace where there is none; with ``more``, let its data set grow.

    Args:
        folder: the workspace.
        sample: ``brain``, slices of an atlas that nilearn ships, or ``street``, drawn scenes.
        more: brain gets the training slices held back at first, street half as many scenes again.

    Raises:
        InputError: ``folder`` holds something else, or the atlas is not installed.
    """
    from segmill.data.manifest import read_dataset_info
    from segmill.data.samples import write_brain, write_street

    if not (folder / "params.yaml").exists():
        _refuse_unless_empty(folder)
        raw = folder / "data" / "raw"
        with _whole_or_nothing(folder):
            _lay_down(folder)
            if sample == "brain":
                write_brain(raw)
            else:
                write_street(raw, count=STREET_COUNT, size=STREET_PX)
                street = [f"prepare.size_px={list(STREET_PX)}", "augment.recipe=driving"]
                set_params(folder / "params.yaml", street)
            workspace = _finish(folder, f"The demo's sample {sample}")
    else:
        workspace = Workspace.open(folder)
    if more:
        raw = workspace.root / read_params(workspace.params).data.path
        if read_dataset_info(raw).name == "brain":
            write_brain(raw, every=1)
        else:
            write_street(raw, count=STREET_COUNT * 3 // 2, size=STREET_PX)
    return workspace


def _refuse_unless_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something else already; name an empty or a new folder")


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """Take what the block made of ``folder`` away again where it fails."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copy(source: Path, target: Path) -> None:
    """Copy a tree and stop at the first file that does not fit, which shutil.copytree does not."""
    for folder, _, names in os.walk(source):
        copied = target / Path(folder).relative_to(source)
        copied.mkdir(parents=True)
        for name in names:
            shutil.copyfile(Path(folder) / name, copied / name)


def _lay_down(folder: Path) -> None:
    create_repository(folder)
    for name in TEMPLATES:
        shutil.copyfile(template(name), folder / name)
    (folder / ".gitignore").write_text("\n".join(IGNORED) + "\n")


def _finish(folder: Path, message: str) -> Workspace:
    workspace = Workspace.open(folder)
    watch_code(workspace)
    with (workspace.root / "data" / ".gitignore").open("a") as ignore:
        ignore.write("/raw\n")
    commit_files(workspace.root, message)
    return workspace


def _usual_size(data: Path) -> list[int]:
    """Return the commonest image size, shrunk to ``LARGEST_SIDE_PX`` and rounded to whole strides of 32 px."""
    from PIL import Image

    from segmill.data.readers import list_pairs

    sizes: Counter[tuple[int, int]] = Counter()
    pairs, _ = list_pairs(data)
    for pair in pairs[:1000]:
        with Image.open(pair.image) as image:
            sizes[image.height, image.width] += 1
    if not sizes:
        raise InputError(f"{data} holds no image under images/; see README for the layout")
    height, width = sizes.most_common(1)[0][0]
    shrink = min(1.0, LARGEST_SIDE_PX / max(height, width))
    return [max(32, round(side * shrink / 32) * 32) for side in (height, width)]
