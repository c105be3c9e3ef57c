from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.data.ingest.formats import open_layout


@pytest.fixture
def camvid(tmp_path: Path, save) -> Path:
    """Two sequences; 0016 is cut by the official split. The lists' paths are another machine's."""
    rows = {"train": ["0001TP_01", "0016E5_01"], "val": ["0016E5_02"]}
    for split, names in rows.items():
        for number, name in enumerate(names):
            save(f"set/{split}/{name}.png", np.full((2, 3, 3), 10 * number + 1))
            save(f"set/{split}annot/{name}.png", [[0, 1, 11], [10, number, 2]])
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names]
        (tmp_path / "set" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "set"


def test_it_is_read_pixel_for_pixel_with_groups_and_official_splits(camvid: Path, take) -> None:
    found = open_layout(camvid)
    assert (found.layout, found.count) == ("camvid", 3)
    assert found.why == (
        "set is camvid: it has a list train.txt, val.txt or test.txt and a folder trainannot/, valannot/ or testannot/"
    )
    taken = take(found)
    assert taken.issues == {}
    assert taken.mask("0016E5_01") == [[0, 1, 11], [10, 1, 2]]
    np.testing.assert_array_equal(taken.image("0016E5_01"), np.full((2, 3, 3), 11))
    assert taken.places() == {
        "0001TP_01": ("0001TP", None),
        "0016E5_01": ("0016E5@train", None),
        "0016E5_02": ("0016E5@val", "test"),
    }
    assert "cut the group 0016E5 (train, val)" in found.notes[0]
    assert found.info.num_classes == 11
    assert (found.info.ignore_id, found.info.class_names[0], found.info.class_names[10]) == (11, "sky", "bicyclist")
    assert len(set(found.info.colors)) == 11
    assert (found.info.name, found.info.source, found.info.license) == ("set", "folder set, layout camvid", "")


def test_bad_lines_are_named_and_nothing_outside_is_read(camvid: Path, save, take) -> None:
    outside = save("trainannot/secret.png", [[1, 1, 1], [1, 1, 1]])
    assert outside.is_file()
    (camvid / "train" / "link.png").symlink_to(outside)
    good = "/x/train/0001TP_01.png /x/trainannot/0001TP_01.png"
    lines = [
        "\ufeff# a comment",
        "",
        good.replace(" ", ",\t"),
        r"C:\x\train\0016E5_01.png;C:\x\trainannot\0016E5_01.png",
        good,
        "/x/train/gone.png /x/trainannot/gone.png",
        "/x/train/0001TP_01.png",
        "a/../trainannot/secret.png x/trainannot/secret.png",
        "/x/train/link.png /x/trainannot/0001TP_01.png",
        "../trainannot/secret.png ../trainannot/secret.png",
        "/etc/passwd /etc/passwd",
        "train/\0.png trainannot/\0.png",
        "y" * 5000,
    ]
    (camvid / "train.txt").write_bytes("\r\n".join(lines).encode())
    taken = take(open_layout(camvid))
    assert sorted(taken.samples) == ["0001TP_01", "0016E5_01", "0016E5_02"]
    said = {file: issue.what for file, issue in taken.issues.items()}
    assert sorted(said) == sorted(["train/0001TP_01.png", *(f"train.txt, line {n}" for n in range(6, 14))])
    assert said["train/0001TP_01.png"] == "it gives the same id '0001TP_01' as train/0001TP_01.png"
    assert said["train.txt, line 6"].startswith("train/gone.png is no file in this set: '/x/train/gone.png")
    assert said["train.txt, line 7"].startswith("it holds 1 paths, not an image's and a mask's")
    assert "no path that ends in FOLDER/FILE" in said["train.txt, line 8"]
    assert said["train.txt, line 9"].startswith("train/link.png is no file in this set")
    assert all(len(what) < 400 for what in said.values())


def test_a_list_whose_folder_was_kept_out_is_left_out_and_said(camvid: Path, take) -> None:
    (camvid / "test.txt").write_text("/SegNet/CamVid/test/a.png /SegNet/CamVid/testannot/a.png\n")
    found = open_layout(camvid)
    assert found.notes[0] == "test.txt is left out: its folder testannot/ is not there"
    assert take(found).issues == {}
