"""Columns of samples.csv travel with the samples of a canonical set: to a new set, and to one that grows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from segmill.data.ingest.formats import open_layout
from segmill.data.ingest.intake import change_set, write_set
from segmill.data.schema.manifest import ClassInfo, DatasetInfo, read_dataset_info, write_dataset_info
from segmill.data.splitting.shares import SplitShares

SHARES = SplitShares(0.2, 0.2, 0)
CLASSES = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000"))


def source(folder: Path, table: str, *ids: str, group: str | None = None) -> Path:
    """A canonical set of 4 x 4 px with this samples.csv."""
    info = DatasetInfo("tiny", CLASSES, group=None if group is None else {"column": group})
    for number, name in enumerate(ids):
        for kind, pixels in (("images", np.full((4, 4, 3), number, np.uint8)), ("masks", np.eye(4, dtype=np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    write_dataset_info(folder, info)
    if table:
        (folder / "samples.csv").write_text(table)
    return folder


def taken(raw: Path) -> dict[str, dict[str, str]]:
    with (raw / "samples.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def grow(raw: Path, more: Path) -> None:
    change_set(raw, open_layout(more, "auto", info=read_dataset_info(raw)).samples, shares=SHARES)


def made(raw: Path, first: Path) -> Path:
    found = open_layout(first, "auto")
    write_set(raw, found.info, found.samples, shares=SHARES, facts=first)
    return raw


def test_new_samples_bring_their_columns_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    table = "id,patient,camera\na,p,left\nb,q,right\n"
    raw = made(tmp_path / "raw", source(tmp_path / "first", table, "a", "b", group="patient"))
    assert (raw / "samples.csv").read_text() == table
    more = source(tmp_path / "more", "id,camera,subject,site\nc,left,r,north\nd,,s,\n", "c", "d", group="subject")
    grow(raw, more)
    assert taken(raw) == {
        "a": {"id": "a", "patient": "p", "camera": "left", "site": ""},
        "b": {"id": "b", "patient": "q", "camera": "right", "site": ""},
        "c": {"id": "c", "patient": "r", "camera": "left", "site": "north"},
        "d": {"id": "d", "patient": "s", "camera": "", "site": ""},
    }
    assert read_dataset_info(raw).group == {"column": "patient"}


def test_a_set_without_samples_csv_gets_one(tmp_path: Path) -> None:
    raw = made(tmp_path / "raw", source(tmp_path / "first", "", "a", "b"))
    assert not (raw / "samples.csv").exists()
    grow(raw, source(tmp_path / "more", "id,camera\nc,left\n", "c"))
    assert taken(raw) == {"c": {"id": "c", "camera": "left"}} and read_dataset_info(raw).group is None
