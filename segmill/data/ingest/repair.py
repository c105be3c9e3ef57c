"""Repaired samples: the same image, and the mask without those of its issues that can be repaired by --fix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segmill.data.ingest.intake import NewSample
from segmill.data.schema.samples import list_samples
from segmill.data.storage.images import encode_png, read_image
from segmill.data.validation.examination import Examination
from segmill.data.validation.mask_faults import look_at_mask, orientation, repair_mask
from segmill.errors import InputError


class Repaired(NamedTuple):
    """A sample with its repaired mask, and the kinds of issues that it had."""

    sample: NewSample
    kinds: tuple[str, ...]


def repaired_samples(raw_dir: Path, found: Examination) -> Iterator[Repaired]:
    """Yield every sample of ``raw_dir`` that can be repaired; one whose repair does not work out is left as it is.

    Args:
        raw_dir: the set as ``examine`` saw it. Nothing is written here.
        found: what that saw.
    """
    kinds_of: dict[str, set[str]] = defaultdict(set)
    for issue in found.issues:
        if issue.repairable:
            for file in issue.files:
                kinds_of[file].add(issue.kind)
    if not kinds_of:
        return
    for entry in list_samples(raw_dir)[0]:
        kinds = kinds_of.get(entry.mask.name)
        if not kinds:
            continue
        try:
            image, mask = entry.image.read(raw_dir), entry.mask.read(raw_dir)
            height, width = read_image(image).shape[:2]
            ids = repair_mask(
                look_at_mask(mask, found.info),
                kinds,
                info=found.info,
                together=found.together,
                size=(height, width),
                orientation=orientation(image),
            )
        except InputError:  # its image can't be read, which is said of it already
            continue
        if ids is not None:
            suffix = PurePosixPath(entry.image.name).suffix
            yield Repaired(NewSample(entry.id, image, suffix, encode_png(ids)), tuple(sorted(kinds)))
