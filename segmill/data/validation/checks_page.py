"""The page of what is wrong with a set: each kind of fault, its first files, and leaks side by side. Self-contained."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmill.data.schema.issues import Fault, stopping
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.schema.mask_values import palette
from segmill.data.storage.images import read_image, read_mask
from segmill.data.storage.labelled import Part
from segmill.data.validation.leaks import Pair
from segmill.errors import InputError
from segmill.files import write_atomically

SHOWN_FILES = 6  # pictures of one fault
SHOWN_FAULTS = 20  # faults of one kind
SHOWN_PAIRS = 24  # pairs of one kind
LISTED_FILES = 500  # names of one fault
PICTURE_PX = 200
# Files of these kinds are not opened again: there is nothing to see, or opening them is what went wrong.
_UNSEEN = ("unreadable", "crashes_decoder", "not_a_file", "link_outside", "wrong_file_type")

Picture = Callable[[str], NDArray[np.uint8] | None]


def write_checks_page(
    path: Path,
    *,
    name: str,
    samples: int,
    faults: Sequence[Fault],
    pairs: Sequence[Pair],
    accept: Sequence[str],
    picture: Picture,
) -> None:
    """Write the page to ``path``, atomically: one HTML file that asks for nothing from anywhere.

    Args:
        name: the set's name. ``samples``: how many it has.
        faults: all of them, accepted ones too. ``pairs``: what find_leaks found besides.
        accept: kinds that do not stop the pipeline.
        picture: gives the pixels of a file by its name, HWC RGB or HW uint8, or None where it can't be shown; asked
            for at most SHOWN_FILES files of a fault and SHOWN_PAIRS pairs of a kind.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    stops = stopping(faults, accept)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    text = page.get_template("checks.html.jinja").render(
        name=name,
        samples=samples,
        stops=len({fault.kind for fault in stops}),
        warnings=len({fault.kind for fault in faults if fault.severity == "warning"}),
        accepted=sorted({fault.kind for fault in faults if fault.severity == "error"} & set(accept)),
        kinds=list(_kinds(faults, pairs, accept, picture)),
        shown_faults=SHOWN_FAULTS,
        shown_pairs=SHOWN_PAIRS,
        listed_files=LISTED_FILES,
    )
    write_atomically(path, text)


def set_picture(raw_dir: Path, part: Part, info: DatasetInfo) -> NDArray[np.uint8] | None:
    """Return an image or mask of the set as RGB to look at, classes in their colours; None where it can't be read."""
    try:
        content = part.read(raw_dir)
        if not part.name.startswith("masks/"):
            return read_image(content)
        mask_HW = read_mask(content)
    except (InputError, OSError):
        return None
    shown = np.full((256, 3), 128, np.uint8)
    shown[: info.num_classes] = palette(info.colors)
    return shown[mask_HW]


def _kinds(
    faults: Sequence[Fault], pairs: Sequence[Pair], accept: Sequence[str], picture: Picture
) -> Iterator[dict[str, Any]]:
    """Yield what the template shows of each kind and severity: what stops the pipeline first, then by number."""
    kinds: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        kinds.setdefault((fault.kind, fault.severity), []).append(fault)

    def weight(key: tuple[str, str]) -> tuple[int, int, str]:
        state = _state(*key, accept)
        return ("stops", "warning", "accepted").index(state), -sum(len(fault.files) for fault in kinds[key]), key[0]

    for key in sorted(kinds, key=weight):
        kind, severity = key
        members = [pair for pair in pairs if (pair.kind, pair.severity) == key]
        yield {
            "kind": kind,
            "state": _state(kind, severity, accept),
            "files": sum(len(fault.files) for fault in kinds[key]),
            "repairable": any(fault.repairable for fault in kinds[key]),
            "faults": [_shown(fault, picture, without=bool(members)) for fault in kinds[key][:SHOWN_FAULTS]],
            "more_faults": max(len(kinds[key]) - SHOWN_FAULTS, 0),
            "pairs": [_side_by_side(pair, picture) for pair in members[:SHOWN_PAIRS]],
            "more_pairs": max(len(members) - SHOWN_PAIRS, 0),
        }


def _state(kind: str, severity: str, accept: Sequence[str]) -> str:
    if severity == "warning":
        return "warning"
    return "accepted" if kind in accept else "stops"


def _shown(fault: Fault, picture: Picture, *, without: bool) -> dict[str, Any]:
    pictured = () if without or fault.kind in _UNSEEN else fault.files[:SHOWN_FILES]
    return {
        "what": fault.what,
        "fix": fault.fix,
        "files": fault.files[:LISTED_FILES],
        "more_files": max(len(fault.files) - LISTED_FILES, 0),
        "pictures": list(_pictures(pictured, picture)),
    }


def _pictures(files: Iterable[str], picture: Picture) -> Iterator[dict[str, str]]:
    for file in files:
        uri = _data_uri(picture(file))
        if uri:
            yield {"file": file, "uri": uri}


def _side_by_side(pair: Pair, picture: Picture) -> dict[str, Any]:
    sides = [
        {"id": sample_id, "file": file, "group": group, "split": split, "uri": _data_uri(picture(file))}
        for sample_id, file, group, split in zip(pair.ids, pair.files, pair.groups, pair.splits, strict=True)
    ]
    return {"sides": sides, "likeness": pair.likeness, "mirrored": pair.mirrored}


def _data_uri(pixels: NDArray[np.uint8] | None) -> str:
    """Return the pixels as a small JPEG inside a URI, or "" for None."""
    if pixels is None:
        return ""
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    image.thumbnail((PICTURE_PX, PICTURE_PX))
    content = BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
