from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.data.ingest.formats import open_layout
from segmill.errors import InputError

IMAGE = np.full((2, 4, 3), 7)
HASHES = [character * 64 for character in "abc"]


def test_hashed_masks_per_image_become_one_class(save, take, tmp_path: Path) -> None:
    for sample_id in ("0f" * 16, "1e" * 16):
        save(f"set/stage1_train/{sample_id}/images/{sample_id}.png", IMAGE)
        save(f"set/stage1_train/{sample_id}/masks/{HASHES[0]}.png", [[255, 0, 0, 0], [0, 0, 0, 0]])
        save(f"set/stage1_train/{sample_id}/masks/{HASHES[1]}.png", [[0, 0, 0, 0], [0, 0, 255, 255]])
    found = open_layout(tmp_path / "set")
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("instances", 2, {})
    assert taken.mask("stage1_train/" + "0f" * 16) == [[1, 0, 0, 0], [0, 0, 1, 1]]
    assert found.info.class_names == ("background", "object")


@pytest.mark.parametrize("shape", ["{id}/images/{id}.png {id}/masks", "images/{id}.png masks/{id}"])
def test_the_class_in_the_name_counts_and_small_lies_on_large(shape: str, save, take, tmp_path: Path) -> None:
    for sample_id in ("x1", "x2"):
        image, masks = shape.format(id=sample_id).split()
        save(f"set/{image}", IMAGE)
        save(f"set/{masks}/truck_1.png", [[255, 255, 255, 0], [255, 255, 255, 0]])
        save(f"set/{masks}/car_2.png", [[0, 0, 255, 255], [0, 0, 0, 0]])
        save(f"set/{masks}/car_10.png", [[9, 0, 0, 0], [0, 0, 0, 0]])
    save("set/" + shape.format(id="x3").split()[0], IMAGE)
    found = open_layout(tmp_path / "set")
    assert found.layout == "instances"
    assert take(found).mask("x1") == [[1, 2, 1, 1], [2, 2, 2, 0]]
    assert found.info.class_names == ("background", "car", "truck")
    assert (found.count, found.notes) == (2, ["1 images are left out: they have no folder of masks"])


def test_a_mask_may_be_named_after_its_image(save, take, tmp_path: Path) -> None:
    for sample_id in ("IMG_a", "img_b"):
        save(f"set/images/{sample_id}.png", IMAGE)
        save(f"set/masks/{sample_id}/{sample_id}_1.png", [[255, 0, 0, 0], [0, 0, 0, 0]])
    found = open_layout(tmp_path / "set")
    assert found.layout == "instances"
    assert take(found).mask("IMG_a") == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_several_images_for_one_folder_of_masks_are_said(save, take, tmp_path: Path) -> None:
    for name in ("x1.png", "x1.bmp", "x2.png"):
        save(f"set/images/{name}", IMAGE)
    for sample_id in ("x1", "x2"):
        save(f"set/masks/{sample_id}/car_1.png", [[255, 0, 0, 0], [0, 0, 0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    assert list(taken.samples) == ["x2"]
    assert "several images for one folder of masks" in taken.issues["images/x1.bmp"].what


def test_masks_of_another_size_and_names_without_class_are_said(save, take, tmp_path: Path) -> None:
    save("set/x1/images/x1.png", IMAGE)
    save("set/x1/masks/car_1.png", [[255, 0], [0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    assert taken.samples == {}
    assert "(2, 2) px (height, width), its image (2, 4)" in taken.issues["x1/masks/car_1.png"].what
    save("set/x1/masks/17.png", [[255, 0], [0, 0]])
    with pytest.raises(InputError, match=r"x1/masks/17.png names no class as x1/masks/car_1.png does"):
        open_layout(tmp_path / "set")
