"""Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY with labelIds, turned into the 19 train ids."""

from __future__ import annotations

from segmill.data.ingest.formats.reading import (
    Row,
    SetFolder,
    Signs,
    SourceContents,
    by_table,
    lookup,
    named,
    read_pair,
    signs,
)
from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.schema.manifest import DatasetInfo
from segmill.data.storage.raw_set import IMAGE_SUFFIXES

LOOKS_FOR = "leftImg8bit/ and gtFine/ with *_gtFine_labelIds.png"
IMAGES, LABELS = "leftImg8bit", "gtFine"
_IMAGE_END, _LABEL_END = "_leftImg8bit", "_gtFine_labelIds.png"
# labelId, name, colour of the 19 classes that are scored, in order of their train id. Source: cityscapesScripts,
# helpers/labels.py.
CLASSES = (
    (7, "road", "#804080"), (8, "sidewalk", "#f423e8"), (11, "building", "#464646"), (12, "wall", "#66669c"),
    (13, "fence", "#be9999"), (17, "pole", "#999999"), (19, "traffic light", "#faaa1e"),
    (20, "traffic sign", "#dcdc00"), (21, "vegetation", "#6b8e23"), (22, "terrain", "#98fb98"), (23, "sky", "#4682b4"),
    (24, "person", "#dc143c"), (25, "rider", "#ff0000"), (26, "car", "#00008e"), (27, "truck", "#000046"),
    (28, "bus", "#003c64"), (31, "train", "#005064"), (32, "motorcycle", "#0000e6"), (33, "bicycle", "#770b20"),
)  # fmt: skip


def recognise(folder: SetFolder) -> Signs:
    return signs(
        (f"{IMAGES}/", folder.is_dir(IMAGES)),
        (f"{LABELS}/ with *{_LABEL_END}", folder.has_file(LABELS, (_LABEL_END,))),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List train and val; group: CITY_SEQUENCE. Test is left out: what its label files hold is no labels.

    Every labelId but the 19 scored ones becomes ignore.
    """
    rows: list[Row] = []
    issues: list[Issue] = []
    for split in ("train", "val"):
        labels = {name.removesuffix(_LABEL_END) for name in folder.files(f"{LABELS}/{split}", (_LABEL_END,))}
        images = {}
        for name in folder.files(f"{IMAGES}/{split}", IMAGE_SUFFIXES):
            start, end, _ = name.rpartition(_IMAGE_END)
            if end:
                images[start] = f"{IMAGES}/{split}/{name}"
        for key in sorted(images.keys() - labels):
            what = f"it has no {LABELS}/{split}/{key}{_LABEL_END}"
            issues.append(wrong_file(images[key], what, "add the labels or remove the image"))
        for key in sorted(labels):
            mask = f"{LABELS}/{split}/{key}{_LABEL_END}"
            if key not in images:
                what = f"it has no {IMAGES}/{split}/{key}{_IMAGE_END}.png"
                issues.append(wrong_file(mask, what, "add the image or remove the labels"))
                continue
            sequence = "_".join(key.rpartition("/")[2].split("_")[:2])
            rows.append(Row(key, images[key], mask, group=sequence, split=split))
    left_out = [split for split in ("test", "train_extra") if folder.is_dir(f"{IMAGES}/{split}")]
    table = lookup({label_id: train_id for train_id, (label_id, _, _) in enumerate(CLASSES)})
    return SourceContents(
        classes=named([name for _, name, _ in CLASSES], [colour for _, _, colour in CLASSES]),
        rows=rows,
        load=lambda row: read_pair(folder, row, by_table(table)),
        issues=issues,
        notes=[f"{split} is left out: it has no fine labels" for split in left_out],
    )
