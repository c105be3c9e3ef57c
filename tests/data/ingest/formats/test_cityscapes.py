from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.data.ingest.formats import open_layout


@pytest.fixture
def cityscapes(tmp_path: Path, save) -> Path:
    for split, city, key in (
        ("train", "aachen", "aachen_000000_000019"),
        ("train", "aachen", "aachen_000000_000020"),
        ("val", "ulm", "ulm_000003_000019"),
        ("test", "bonn", "bonn_000001_000019"),
    ):
        save(f"set/leftImg8bit/{split}/{city}/{key}_leftImg8bit.png", np.full((2, 3, 3), 9))
        # road, ego vehicle (not scored), bicycle; car, license plate (-1 in 8 bits), sidewalk
        save(f"set/gtFine/{split}/{city}/{key}_gtFine_labelIds.png", [[7, 1, 33], [26, 255, 8]])
        save(f"set/gtFine/{split}/{city}/{key}_gtFine_instanceIds.png", [[7, 1, 33], [26, 255, 8]])
        save(f"set/gtFine/{split}/{city}/{key}_gtFine_color.png", np.full((2, 3, 3), 9))
    return tmp_path / "set"


def test_label_ids_become_the_19_train_ids(cityscapes: Path, take) -> None:
    found = open_layout(cityscapes)
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("cityscapes", 3, {})
    assert taken.mask("aachen/aachen_000000_000019") == [[0, 255, 18], [13, 255, 1]]
    assert taken.places() == {
        "aachen/aachen_000000_000019": ("aachen_000000", None),
        "aachen/aachen_000000_000020": ("aachen_000000", None),
        "ulm/ulm_000003_000019": ("ulm_000003", "test"),
    }
    assert found.notes[0] == "test is left out: it has no fine labels"
    assert found.info.class_names == (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    assert len(set(found.info.colors)) == 19


def test_what_has_no_partner_is_found(cityscapes: Path, take) -> None:
    (cityscapes / "leftImg8bit/val/ulm/ulm_000003_000019_leftImg8bit.png").unlink()
    (cityscapes / "gtFine/train/aachen/aachen_000000_000020_gtFine_labelIds.png").unlink()
    taken = take(open_layout(cityscapes))
    assert sorted(taken.samples) == ["aachen/aachen_000000_000019"]
    assert sorted(taken.issues) == [
        "gtFine/val/ulm/ulm_000003_000019_gtFine_labelIds.png",
        "leftImg8bit/train/aachen/aachen_000000_000020_leftImg8bit.png",
    ]
