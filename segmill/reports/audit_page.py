"""The page of a label audit: a card per suspicious sample, all in one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.reports.page import write_page
from segmill.reports.pictures import Box, Pixels, as_uri, errors, numbered, overlay, resized

KINDS = ("image", "label", "prediction", "disagreement")
# Larger pictures are reduced, smaller ones enlarged, so that boxes and numbers can be read.
PICTURE_PX = 480
QUALITY = 85


class NamedClass(NamedTuple):
    """A class and its colour as "#rrggbb"."""

    name: str
    color: str


class ClassPair(NamedTuple):
    """A change of class, and in how many of the listed samples it occurs."""

    given: NamedClass
    suggested: NamedClass
    samples: int


class SuggestedChange(NamedTuple):
    """A region whose label a model contradicts; its box is in px of the image."""

    given: NamedClass
    suggested: NamedClass
    box: Box
    pixels: int
    confidence: float
    score: float


class AuditCard(NamedTuple):
    """One suspicious sample: the changes that are numbered on its pictures, and how many ``more`` there are."""

    rank: int
    id: str
    split: str
    group: str
    mask: str
    score: float
    changes: Sequence[SuggestedChange]
    more: int
    image_HWC: Pixels
    label_HW: Pixels
    prediction_HW: Pixels
    flagged_HW: NDArray[np.bool_]


@dataclass(frozen=True)
class AuditPage:
    """All that the page shows.

    Attributes:
        name: of the data set, its ``classes`` with their colours ``colors_K3``; ``ignore_id`` marks unlabelled pixels.
        samples: split to how many were examined. ``suspicious``: how many samples are.
        listed: how many are in audit.csv. ``drawn``: how many cards there are.
        unknown: classes that a model does not know. ``pairs``: the most frequent changes.
    """

    name: str
    classes: Sequence[NamedClass]
    colors_K3: Pixels
    ignore_id: int
    samples: Mapping[str, int]
    suspicious: int
    listed: int
    drawn: int
    unknown: Sequence[str]
    pairs: Sequence[ClassPair]
    cards: Iterable[AuditCard]


def write_audit_page(page: AuditPage, path: Path) -> None:
    """Write the page to ``path``: a card per sample with image, label, prediction and disagreement."""
    write_page(path, "audit.html.jinja", page=page, cards=(_shown(card, page) for card in page.cards))


def _shown(card: AuditCard, page: AuditPage) -> dict[str, Any]:
    image, label, ignore_id = card.image_HWC, card.label_HW, page.ignore_id
    nothing_wrong = np.where(label == ignore_id, label, np.uint8(0))
    drawn = (
        image,
        overlay(image, label, page.colors_K3, ignore_id),
        overlay(image, card.prediction_HW, page.colors_K3, ignore_id),
        errors(image, nothing_wrong, np.where(label == ignore_id, label, card.flagged_HW), ignore_id),
    )
    boxes = [change.box for change in card.changes]
    uris = [_uri(pixels, boxes if kind != "image" else ()) for kind, pixels in zip(KINDS, drawn, strict=True)]
    return {"facts": card, "pictures": list(zip(KINDS, uris, strict=True))}


def _uri(pixels: Pixels, boxes: Sequence[Box]) -> str:
    picture, scale = resized(pixels, PICTURE_PX)
    return as_uri(numbered(picture, boxes, scale), QUALITY)
