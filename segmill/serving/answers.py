"""What a reply says of an image: its mask as PNG, run lengths or numbers, and on request what it was made from."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmill.anomaly.detector import Anomaly
from segmill.data.storage.images import encode_png
from segmill.reports.pictures import overlay

Pixels = NDArray[np.uint8]


class Form(StrEnum):
    """How masks come: one PNG, COCO's run lengths in JSON, class ids in JSON, or a ZIP of files."""

    PNG = "png"
    RLE = "rle"
    JSON = "json"
    ZIP = "zip"


class Extra(StrEnum):
    """What may be asked for besides the mask."""

    PROBABILITIES = "probabilities"
    OVERLAY = "overlay"
    ANOMALY = "anomaly"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of an image besides its classes.

    Attributes:
        probabilities: of every class and pixel.
        anomaly_map: of every pixel.
        value: the image's value of the column that the anomaly detector is calibrated by.
    """

    probabilities: bool = False
    anomaly_map: bool = False
    value: str = ""


@dataclass(frozen=True, eq=False)
class Segmented:
    """What the model said of one image.

    Attributes:
        ids_HW: class ids, uint8.
        probs_KHW: float16, None where nobody asked.
        confidence: the mean over pixels of the largest probability, 0..1.
        anomaly: how unusual the image is; None where the version has no detector.
    """

    ids_HW: Pixels
    probs_KHW: NDArray[np.float16] | None
    confidence: float
    anomaly: Anomaly | None = None


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a model: names in the order of their ids, colours K x 3 uint8, the id of unlabelled pixels."""

    names: tuple[str, ...]
    colors_K3: Pixels
    ignore_id: int


def rle(ids_HW: Pixels, names: Sequence[str]) -> dict[str, Any]:
    """Return COCO's compressed run lengths, by class name, of the classes that there are."""
    counts: dict[str, str] = {}
    for number, name in enumerate(names):
        here_HW = ids_HW == number
        if here_HW.any():
            counts[name] = coco.encode(np.asfortranarray(here_HW.astype(np.uint8)))["counts"].decode()
    return {"size": list(ids_HW.shape), "counts": counts}


def shares(ids_HW: Pixels, names: Sequence[str]) -> dict[str, float]:
    """Return which share of the pixels each class has, 0..1, by name."""
    counts_K = np.bincount(ids_HW.ravel(), minlength=len(names))
    return {name: round(float(count) / ids_HW.size, 6) for name, count in zip(names, counts_K, strict=False)}


def as_json(
    segmented: Segmented, image_HWC: Pixels, classes: Classes, form: Form, extras: set[Extra]
) -> dict[str, Any]:
    """Return what JSON says of an image; pictures and arrays are base64 of a PNG or of a .npy file."""
    said: dict[str, Any] = {
        "height": segmented.ids_HW.shape[0],
        "width": segmented.ids_HW.shape[1],
        "class_shares": shares(segmented.ids_HW, classes.names),
        "confidence": round(segmented.confidence, 6),
        "anomaly": segmented.anomaly.as_json() if segmented.anomaly else None,
    }
    if form == Form.RLE:
        said["rle"] = rle(segmented.ids_HW, classes.names)
    elif form == Form.JSON:
        said["ids"] = segmented.ids_HW.tolist()
    if form != Form.ZIP:
        said |= {
            name: base64.b64encode(content).decode()
            for name, content in _files(segmented, image_HWC, classes, extras).items()
        }
    return said


def as_zip(
    every: Sequence[tuple[Segmented, Pixels]], classes: Classes, extras: set[Extra], said: Mapping[str, Any]
) -> bytes:
    """Return a ZIP: ``answer.json`` with ``said``, and per image N its ``N/mask.png`` and what else was asked for."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("answer.json", json.dumps(said))
        for number, (segmented, image_HWC) in enumerate(every):
            archive.writestr(f"{number}/mask.png", encode_png(segmented.ids_HW))
            for name, file in _files(segmented, image_HWC, classes, extras).items():
                archive.writestr(f"{number}/{name}{'.npy' if name == Extra.PROBABILITIES else '.png'}", file)
    return content.getvalue()


def _files(segmented: Segmented, image_HWC: Pixels, classes: Classes, extras: set[Extra]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if Extra.OVERLAY in extras:
        found[Extra.OVERLAY] = encode_png(overlay(image_HWC, segmented.ids_HW, classes.colors_K3, classes.ignore_id))
    if Extra.ANOMALY in extras and segmented.anomaly and segmented.anomaly.map_HW is not None:
        found["anomaly_map"] = encode_png(segmented.anomaly.map_HW)
    if Extra.PROBABILITIES in extras and segmented.probs_KHW is not None:
        kept = io.BytesIO()
        np.save(kept, segmented.probs_KHW)
        found[Extra.PROBABILITIES] = kept.getvalue()
    return found
