from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.data.ingest.formats import open_layout
from segmill.errors import InputError

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]


@pytest.fixture
def voc(tmp_path: Path, save) -> Path:
    for name in ("2007_01", "2007_02", "2007_03"):
        save(f"VOC2012/JPEGImages/{name}.jpg", np.full((2, 2, 3), 50))
    save("VOC2012/SegmentationClass/2007_01.png", [[0, 1], [255, 20]], PALETTE)
    # In VOC's colours, as tools without palettes write it: background, aeroplane; border, tvmonitor.
    save("VOC2012/SegmentationClass/2007_02.png", [[[0, 0, 0], [128, 0, 0]], [[224, 224, 192], [0, 64, 128]]])
    lists = tmp_path / "VOC2012/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_01\n")
    (lists / "val.txt").write_text("2007_02  1\n")
    (lists / "trainval.txt").write_text("2007_01\n2007_02\n")
    (lists / "test.txt").write_text("2007_03\n")
    return tmp_path / "VOC2012"


def test_palette_and_colours_come_as_the_21_classes(voc: Path, take) -> None:
    found = open_layout(voc)
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("voc", 2, {})
    assert taken.mask("2007_01") == [[0, 1], [255, 20]]
    assert taken.mask("2007_02") == [[0, 1], [255, 20]]
    assert taken.samples["2007_01"].image == (voc / "JPEGImages/2007_01.jpg").read_bytes()
    assert taken.samples["2007_01"].suffix == ".jpg"
    assert taken.places() == {"2007_01": (None, None), "2007_02": (None, "test")}
    assert found.notes == [
        "test.txt is left out: none of its 1 images has a mask",
        "the source has no labelled test: its val is test, and the rest is assigned to the splits by group",
    ]
    assert found.info.num_classes == 21
    assert found.info.class_names[:2] == ("background", "aeroplane")
    assert found.info.colors[:4] == ("#000000", "#800000", "#008000", "#808000")
    assert found.info.colors[20] == "#004080"
    assert found.info.ignore_id == 255


def test_it_is_found_inside_voc_devkit(voc: Path, tmp_path: Path, take) -> None:
    (tmp_path / "top" / "VOCdevkit").mkdir(parents=True)
    voc.rename(tmp_path / "top/VOCdevkit/VOC2012")
    found = open_layout(tmp_path / "top")
    assert found.layout == "voc"
    assert sorted(take(found).samples) == ["2007_01", "2007_02"]


@pytest.mark.parametrize("other", [False, True], ids=["no list at all", "a list per class"])
def test_without_lists_all_pairs_are_taken(other: bool, voc: Path, take) -> None:
    for name in ("train", "val", "trainval", "test"):
        (voc / f"ImageSets/Segmentation/{name}.txt").unlink()
    if other:
        (voc / "ImageSets/Segmentation/cat_train.txt").write_text("2007_01 -1\n")
    found = open_layout(voc)
    assert take(found).places() == {"2007_01": (None, None), "2007_02": (None, None)}
    assert "every image with a mask was taken" in found.notes[0]


def test_bad_lines_and_strange_colours_become_issues(voc: Path, save, take) -> None:
    save("VOC2012/SegmentationClass/2007_02.png", [[[0, 0, 0], [1, 2, 3]], [[0, 0, 0], [0, 0, 0]]])
    (voc / "ImageSets/Segmentation/train.txt").write_bytes(
        b"# list\r\n\r\n2007_01\r\n../../etc/passwd\r\n2007_09 -1\r\n.."
    )
    taken = take(open_layout(voc))
    train = "ImageSets/Segmentation/train.txt"
    said = {file: issue.what for file, issue in taken.issues.items()}
    assert sorted(said) == ["ImageSets/Segmentation/train.txt, line " + n for n in "456"] + [
        "SegmentationClass/2007_02.png"
    ]
    assert said[f"{train}, line 4"] == "it is no image's name: '../../etc/passwd'"
    assert said[f"{train}, line 5"] == "JPEGImages/2007_09.jpg is no file in this set: '2007_09 -1'"
    assert "#010203 (1 px) (closest to #010203 is #000000)" in said["SegmentationClass/2007_02.png"]


def test_several_years_are_refused(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "VOC2007/JPEGImages").mkdir(parents=True)
    (tmp_path / "VOC2007/SegmentationClass").mkdir()
    with pytest.raises(InputError, match="several sets of VOC \\(VOC2007, VOC2012\\)"):
        open_layout(tmp_path)
