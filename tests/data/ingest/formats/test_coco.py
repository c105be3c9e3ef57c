from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segmill.data.ingest.formats import open_layout
from segmill.errors import InputError

THINGS = [{"id": 1, "name": "person"}, {"id": 7, "name": "train"}]
STUFF = [{"id": 92, "name": "banner"}, {"id": 183, "name": "other"}]
LEFT = {"size": [3, 4], "counts": [0, 6, 6]}  # by columns: the two on the left
SQUARE = [[1, 0, 3, 0, 3, 2, 1, 2]]  # columns 1, 2 of rows 0, 1


def compressed(pixels: list[list[int]]) -> dict[str, object]:
    rle = coco_mask.encode(np.asfortranarray(np.array(pixels, np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def write(tmp_path: Path, save):
    """Write one part of a set: images 1.png, 2.png of 3 x 4 px and a JSON file."""

    def part(name: str, annotations: list[dict], categories: list[dict] = THINGS, **more: object) -> Path:
        for number in (1, 2):
            if not (tmp_path / f"set/train2017/{number}.png").exists():
                save(f"set/train2017/{number}.png", np.full((3, 4, 3), number))
        images = [{"id": n, "file_name": f"{n}.png", "height": 3, "width": 4} for n in (1, 2)]
        content = {"images": images, "annotations": annotations, "categories": categories, **more}
        path = tmp_path / "set/annotations" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return tmp_path / "set"

    return part


def test_objects_are_painted_large_to_small_over_crowds_over_background(write, take) -> None:
    root = write(
        "instances_train2017.json",
        [
            {"id": 1, "image_id": 1, "category_id": 7, "segmentation": SQUARE, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": LEFT, "iscrowd": 0},
            {
                "id": 3,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": [3, 4], "counts": [5, 7]},
                "iscrowd": 1,
            },
        ],
    )
    found = open_layout(root)
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("coco", 2, {})
    # Crowd from the sixth pixel of the columns on: ignore; then person (6 px) left; then train (4 px) on top.
    assert taken.mask("1") == [[1, 2, 2, 255], [1, 2, 2, 255], [1, 1, 255, 255]]
    assert taken.mask("2") == [[0] * 4] * 3
    assert found.info.class_names == ("background", "person", "train")
    assert taken.places() == {"1": (None, None), "2": (None, None)}
    np.testing.assert_array_equal(taken.image("2"), np.full((3, 4, 3), 2))


def test_stuff_lies_under_objects_and_the_rest_is_ignored(write, take) -> None:
    one = {"image_id": 1, "category_id": 92, "segmentation": compressed([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])}
    write("stuff_train2017.json", [{"id": 1, **one}], STUFF)
    root = write("instances_train2017.json", [{"id": 2, "image_id": 1, "category_id": 7, "segmentation": SQUARE}])
    found = open_layout(root)
    taken = take(found)
    assert found.info.class_names == ("person", "train", "banner", "other")
    assert taken.mask("1") == [[2, 1, 1, 2], [255, 1, 1, 255], [255] * 4]
    assert taken.mask("2") == [[255] * 4] * 3


def test_stuff_pixel_maps_hold_category_ids(write, save, take) -> None:
    root = write("stuff_train2017.json", [], STUFF)
    for number in (1, 2):
        save(f"set/annotations/stuff_train2017_pixelmaps/{number}.png", [[92, 183, 0, 92]] * 3)
    taken = take(open_layout(root))
    assert taken.mask("1") == [[0, 1, 255, 0]] * 3


def test_panoptic_pngs_are_read_and_stand_alone(write, save, take) -> None:
    # 300 = 44 + 256, 65537 = 1 + 65536; 5 is a crowd, 0 unlabelled.
    rows = [[[44, 1, 0], [1, 0, 1], [5, 0, 0], [0, 0, 0]]] * 3
    save("set/annotations/panoptic_train2017/1.png", rows)
    segments = [
        {"id": 300, "category_id": 1},
        {"id": 65537, "category_id": 92},
        {"id": 5, "category_id": 1, "iscrowd": 1},
    ]
    write("instances_train2017.json", [{"id": 2, "image_id": 1, "category_id": 7, "segmentation": SQUARE}])
    root = write(
        "panoptic_train2017.json", [{"image_id": 1, "file_name": "1.png", "segments_info": segments}], THINGS + STUFF
    )
    found = open_layout(root)
    taken = take(found)
    assert found.info.class_names == ("person", "train", "banner", "other")
    assert taken.mask("1") == [[0, 2, 255, 255]] * 3
    assert found.notes[0] == "annotations/instances_train2017.json is left out"
    assert taken.issues["annotations/panoptic_train2017.json"].what == (
        "image train2017/2.png has 0 panoptic annotations, not one"
    )


def test_a_segment_that_the_json_does_not_know_is_found(write, save, take) -> None:
    save("set/annotations/panoptic_train2017/1.png", [[[9, 0, 0]] * 4] * 3)
    annotation = {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 8, "category_id": 1}]}
    taken = take(open_layout(write("panoptic_train2017.json", [annotation])))
    assert taken.samples == {}
    assert any("segment 9" in issue.what for issue in taken.found)


def test_files_beside_their_images_with_the_split_as_folder(tmp_path: Path, save, take) -> None:
    for split in ("train", "valid"):
        save(f"set/{split}/a.png", np.full((3, 4, 3), 5))
        images = [{"id": 0, "file_name": "a.png", "height": 3, "width": 4}]
        annotations = [{"id": 0, "image_id": 0, "category_id": 3, "segmentation": SQUARE}]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "Background"}]}
        content["categories"].append({"id": 5, "name": "cat"})
        (tmp_path / f"set/{split}/_annotations.coco.json").write_text(json.dumps(content))
    found = open_layout(tmp_path / "set")
    taken = take(found)
    assert taken.places() == {"train/a": (None, None), "valid/a": (None, "test")}
    assert found.info.class_names == ("Background", "cat")  # its own background is the rest's
    assert taken.mask("train/a") == [[0] * 4] * 3


def test_what_is_wrong_with_annotations_is_said_of_each(write, take, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"secret")
    outline = {"category_id": 1, "image_id": 1}
    root = write(
        "instances_train2017.json",
        [
            {"id": 1, "image_id": 77, "category_id": 1, "segmentation": SQUARE},
            {"id": 2, "image_id": 1, "category_id": 99, "segmentation": SQUARE},
            {"id": 3, **outline, "segmentation": []},
            {"id": 4, "image_id": 2, "category_id": 1, "segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
            {"id": 5, **outline, "segmentation": [[[[[0]]]]]},
        ],
    )
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"] += [
        {"id": 3, "file_name": "../outside.png", "height": 3, "width": 4},
        {"id": 4, "file_name": "/etc/passwd", "height": 3, "width": 4},
        {"id": 5, "file_name": "1.png", "height": 60_000, "width": 60_000},
        {"id": 6, "height": 3, "width": 4},
    ]
    path.write_text(json.dumps(content))
    taken = take(open_layout(root))
    said = {file.rpartition(", ")[2]: issue.what for file, issue in taken.issues.items()}
    assert said == {
        "annotation 1": "its image '77' is not among the images",
        "annotation 2": "its category 99 is not among the categories",
        "annotation 3": "it has no segmentation",
        "annotation 5": "its segmentation is no list of polygons and no RLE",
        "annotations/instances_train2017.json": (
            "annotations/instances_train2017.json, annotation 4: its polygon leads more than 8 px away"
        ),
        "image 3": "'../outside.png' is no file in this set",
        "image 4": "'/etc/passwd' is no file in this set",
        "image 5": "its size is 60000 x 60000 px",
        "image 6": "it has no id and file_name",
    }
    assert sorted(taken.samples) == ["1"]


def test_a_cut_off_file_and_boxes_alone_are_refused(write) -> None:
    root = write("instances_train2017.json", [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(InputError, match="none of the 1 annotations"):
        open_layout(root)
    path = root / "annotations/instances_train2017.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is no whole JSON file"):
        open_layout(root)
