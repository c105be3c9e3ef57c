from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest.formats import open_layout
from segmill.data.schema.manifest import ClassInfo, DatasetInfo
from segmill.errors import InputError

RGB = np.arange(18).reshape(2, 3, 3)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "jpg"])
@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("IMGS", "Labels"), ("img", "gt")])
def test_folders_are_found_by_name_in_every_format(suffix: str, images: str, masks: str, tmp_path, save, take) -> None:
    path = save(f"set/{images}/a.{suffix}", RGB)
    save(f"set/{masks}/a.png", [[0, 1, 2], [3, 255, 0]])
    found = open_layout(tmp_path / "set")
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("folders", 1, {})
    assert taken.mask("a") == [[0, 1, 2], [3, 255, 0]]
    assert taken.samples["a"].image == path.read_bytes()
    assert taken.samples["a"].suffix == f".{suffix}"
    assert found.info.class_names == ("class_0", "class_1", "class_2", "class_3")
    assert len(set(found.info.colors)) == 4
    assert found.notes == ["the masks hold class ids 0..3 and 255, read as ignore; name the classes in dataset.yaml"]


def test_grey_palette_and_alpha_images_come_in(save, take, tmp_path: Path) -> None:
    save("set/images/grey.png", RGB[:, :, 0])
    save("set/images/palette.png", [[0, 1, 1], [1, 0, 0]], [9, 8, 7, 1, 2, 3])
    alpha = np.dstack([RGB, np.full((2, 3), 128)]).astype(np.uint8)
    Image.fromarray(alpha).save(tmp_path / "set/images/alpha.png")
    for name in ("grey", "palette", "alpha"):
        save(f"set/masks/{name}.png", [[0, 1, 1], [1, 0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    np.testing.assert_array_equal(taken.image("grey"), RGB[:, :, :1])
    assert taken.image("palette")[0, 0].tolist() == [9, 8, 7]
    np.testing.assert_array_equal(taken.image("alpha"), RGB)


def test_16_bit_images_become_8_bits_by_their_own_window(save, take, tmp_path: Path) -> None:
    save("set/images/deep.png", [[0, 1000, 2000], [3000, 0, 3000]], dtype=np.uint16)
    save("set/images/deep_tif.tif", [[0, 1000, 2000], [3000, 0, 3000]], dtype=np.uint16)
    for name in ("deep", "deep_tif"):
        save(f"set/masks/{name}.png", [[0, 1, 1], [1, 0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    for name in ("deep", "deep_tif"):
        assert taken.image(name)[:, :, 0].tolist() == [[0, 85, 170], [255, 0, 255]]
        assert taken.samples[name].suffix == ".png"


@pytest.mark.parametrize("ending", ["_mask", "_Label", "-gt", "_segmentation", "_L", ""])
def test_masks_may_have_endings(ending: str, save, take, tmp_path: Path) -> None:
    save("set/images/s/a_sat.png", RGB)
    save("set/images/s/b.png", RGB)
    save(f"set/masks/s/a{ending}.png", [[0, 1, 1], [1, 0, 0]])
    save(f"set/masks/s/b{ending}.png", [[1, 1, 1], [1, 0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    assert taken.issues == {}
    assert taken.mask("s/a") == [[0, 1, 1], [1, 0, 0]]
    assert taken.mask("s/b") == [[1, 1, 1], [1, 0, 0]]
    assert taken.places() == {"s/a": ("s", None), "s/b": ("s", None)}


@pytest.mark.parametrize("top", ["{split}/images/{group}", "images/{split}/{group}"])
def test_split_and_group_come_from_the_folders(top: str, save, take, tmp_path: Path) -> None:
    for split, group, name in (("train", "cam1", "a"), ("valid", "cam2", "b"), ("testing", "cam1", "c")):
        images = top.format(split=split, group=group)
        save(f"set/{images}/{name}.png", RGB)
        save(f"set/{images.replace('images', 'masks')}/{name}.png", [[0, 1, 1], [1, 0, 0]])
    found = open_layout(tmp_path / "set")
    assert take(found).places() == {
        "train/cam1/a": ("cam1@train", "train"),
        "valid/cam2/b": ("cam2", "val"),
        "testing/cam1/c": ("cam1@test", "test"),
    }
    assert any("cut the group cam1 (train, test)" in note for note in found.notes)


def test_a_test_folder_without_masks_is_left_out_and_said(save, take, tmp_path: Path) -> None:
    for name in ("train/a", "test/b"):
        save(f"set/images/{name}.png", RGB)
    save("set/masks/train/a.png", [[0, 1, 1], [1, 0, 0]])
    found = open_layout(tmp_path / "set")
    assert list(take(found).samples) == ["train/a"]
    assert found.notes[1] == "test is left out: none of its 1 images has a mask"


def test_0_and_255_become_two_classes(save, take, tmp_path: Path) -> None:
    save("set/images/a.png", RGB)
    save("set/masks/a.png", [[0, 255, 0], [255, 255, 0]])
    found = open_layout(tmp_path / "set")
    assert take(found).mask("a") == [[0, 1, 0], [1, 1, 0]]
    assert [(c.name, c.color) for c in found.info.classes] == [("background", "#000000"), ("foreground", "#ffffff")]
    assert found.notes == ["the masks hold 0 and 255: 0 was read as background, 255 as foreground"]


def test_jpeg_masks_are_cut_at_half_brightness_or_refused(save, take, tmp_path: Path) -> None:
    save("set/images/a.png", np.zeros((16, 16, 3)))
    pixels = np.zeros((16, 16))
    pixels[:, 8:] = 255
    save("set/masks/a.jpg", pixels)
    found = open_layout(tmp_path / "set")
    assert take(found).mask("a") == (pixels // 255).astype(int).tolist()
    save("set/masks/a.jpg", np.full((16, 16), 7 * 16))
    with pytest.raises(InputError, match="1 masks are JPEG or lossy WebP, which blurs class ids"):
        open_layout(tmp_path / "set")


def test_colours_become_a_class_map_named_after_them(save, take, tmp_path: Path) -> None:
    save("set/images/a.png", RGB)
    save("set/images/b.png", RGB)
    save("set/masks/a.png", [[[0, 0, 0], [255, 0, 0], [1, 2, 3]], [[0, 0, 0]] * 3])
    save("set/masks/b.png", [[[0, 128, 0]] * 3, [[0, 0, 0]] * 3])
    found = open_layout(tmp_path / "set")
    taken = take(found)
    assert [(c.id, c.name, c.color) for c in found.info.classes] == [
        (0, "black", "#000000"),
        (1, "green", "#008000"),
        (2, "colour_010203", "#010203"),
        (3, "red", "#ff0000"),
    ]
    assert taken.mask("a") == [[0, 3, 2], [0, 0, 0]]
    assert taken.mask("b") == [[1, 1, 1], [0, 0, 0]]


def test_palettes_that_disagree_are_read_by_colour(save, take, tmp_path: Path) -> None:
    for name, palette in (("a", [0, 0, 0, 255, 0, 0]), ("b", [255, 0, 0, 0, 0, 0])):
        save(f"set/images/{name}.png", RGB)
        save(f"set/masks/{name}.png", [[0, 1, 1], [0, 0, 0]], palette)
    taken = take(open_layout(tmp_path / "set"))
    assert taken.mask("a") == [[0, 1, 1], [0, 0, 0]]
    assert taken.mask("b") == [[1, 0, 0], [1, 1, 1]]


def test_what_has_no_partner_and_what_is_ambiguous_is_found(save, take, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(f"set/images/{name}.png", RGB)
    save("set/images/c.bmp", RGB)
    for name in ("a", "c", "d"):
        save(f"set/masks/{name}.png", [[0, 1, 1], [1, 0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    assert {file: issue.what for file, issue in taken.issues.items()} == {
        "images/b.png": "it has no mask in masks/",
        "images/c.png": "it gives the same id 'c' as images/c.bmp",
        "masks/d.png": "it has no image in images/",
    }
    save("set/labels/a.png", [[0, 1, 1], [1, 0, 0]])
    with pytest.raises(InputError, match="both labels/ and masks/ could hold the masks"):
        open_layout(tmp_path / "set")


def test_no_mask_serves_two_images(save, take, tmp_path: Path) -> None:
    """a_l's mask is not a's without an ending, and of two images for b's mask one is said to have none of its own."""
    for name in ("a", "a_l", "b_gt", "b_seg"):
        save(f"set/images/{name}.png", RGB)
    for name in ("a_l", "b"):
        save(f"set/masks/{name}.png", [[0, 1, 1], [1, 0, 0]])
    taken = take(open_layout(tmp_path / "set"))
    assert sorted(taken.samples) == ["a_l", "b_gt"]
    assert {file: issue.what for file, issue in taken.issues.items()} == {
        "images/a.png": "it has no mask in masks/",
        "images/b_seg.png": "its mask masks/b.png is images/b_gt.png's too",
    }


def test_the_class_map_of_the_set_is_used_where_there_is_one(save, take, tmp_path: Path) -> None:
    classes = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "roof", "#ff0000"), ClassInfo(2, "tree", "#00ff00"))
    info = DatasetInfo("mine", classes, ignore_id=9)
    for name in ("ids", "colours", "strange"):
        save(f"set/images/{name}.png", RGB)
    save("set/masks/ids.png", [[0, 2, 9], [1, 1, 1]])
    save("set/masks/colours.png", [[[255, 0, 0], [0, 255, 0], [0, 0, 0]]] * 2)
    save("set/masks/strange.png", [[0, 3, 0], [0, 0, 0]])
    found = open_layout(tmp_path / "set", info=info)
    taken = take(found)
    assert found.info is info
    assert taken.mask("ids") == [[0, 2, 9], [1, 1, 1]]
    assert taken.mask("colours") == [[1, 2, 0], [1, 2, 0]]
    assert "values that are no class: 3 (1 px)" in taken.issues["masks/strange.png"].what


def test_links_out_of_the_set_are_not_followed(save, take, tmp_path: Path) -> None:
    secret = save("secret.png", [[1, 1, 1], [1, 1, 1]])
    save("set/images/a.png", RGB)
    save("set/images/b.png", RGB)
    save("set/masks/a.png", [[0, 1, 1], [1, 0, 0]])
    (tmp_path / "set/masks/b.png").symlink_to(secret)
    taken = take(open_layout(tmp_path / "set"))
    assert list(taken.samples) == ["a"]
    assert taken.issues["masks/b.png"].what == "it leads out of the set's folder"
