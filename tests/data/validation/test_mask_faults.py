"""The mask doctor: hand-made masks with one disease each, and healthy ones that look suspicious."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest.builtin import draw_street
from segmill.data.schema.manifest import ClassInfo, DatasetInfo
from segmill.data.storage.images import encode_png
from segmill.data.validation.mask_faults import (
    Together,
    find_stains,
    fits_turned,
    is_flat,
    look_at_mask,
    orientation,
    read_together,
    repair_mask,
    turn,
    unshift,
)


def info_of(count: int, ignore_id: int = 255) -> DatasetInfo:
    classes = tuple(ClassInfo(i, f"class_{i}", f"#{i:02x}00ff") for i in range(count))
    return DatasetInfo("tiny", classes, ignore_id)


def blob(inside: int, outside: int = 0, size: int = 64) -> np.ndarray:
    """A disc of ``inside`` on ``outside``."""
    mask = np.full((size, size), outside, np.uint8)
    cv2.circle(mask, (size // 2, size // 2), size // 3, inside, -1)
    return mask


def doubled(mask: np.ndarray) -> np.ndarray:
    """The mask at twice its size, as someone makes it who resizes it like a photo."""
    return cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)


def saved(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    target = BytesIO()
    Image.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()


def street_mask(frame: int = 0) -> np.ndarray:
    return draw_street((128, 128), seed=3, sequence=1, frame=frame)[1]


def stains(mask: np.ndarray, info: DatasetInfo) -> str:
    return find_stains(mask, np.bincount(mask.ravel(), minlength=256), info)[0]


@pytest.mark.parametrize("inside", [1, 255])
def test_a_clean_mask_has_no_stain(inside: int) -> None:
    assert stains(blob(inside), info_of(2)) == ""


def test_street_masks_have_no_stain() -> None:
    for frame in range(8):
        assert stains(street_mask(frame), info_of(5)) == ""


def test_smoothed_edges_of_a_0_255_mask() -> None:
    look = look_at_mask(encode_png(doubled(blob(255))), info_of(2))
    assert look.kinds == ("soft_edges",)
    assert set(look.values) == {0, 255}


def test_smoothed_edges_between_ids_and_ignored_pixels() -> None:
    assert stains(doubled(street_mask()), info_of(5)) == "soft_edges"


def test_smoothed_edges_that_are_ids_themselves() -> None:
    """Between 0 and 6 lie 1 to 5, all of them classes: only the steps tell."""
    assert stains(blob(6), info_of(7)) == ""
    assert stains(doubled(blob(6)), info_of(7)) == "soft_edges"


def test_neighbours_in_id_that_are_neighbours_in_space_are_healthy() -> None:
    """Rings of skull, fluid, grey and white around one another, each a pixel or two wide."""
    mask = np.zeros((64, 64), np.uint8)
    for value, radius in enumerate((24, 22, 20), 1):
        cv2.circle(mask, (32, 32), radius, value, -1)
    assert stains(mask, info_of(4)) == ""


def test_a_region_or_a_line_of_one_strange_id_is_no_stain() -> None:
    mask = blob(1)
    mask[5:15, 5:15] = 9
    assert stains(mask, info_of(2)) == ""
    assert stains(np.eye(32, dtype=np.uint8) * 9, info_of(2)) == ""


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_jpeg_halos_in_a_png(quality: int) -> None:
    after = np.array(Image.open(BytesIO(saved(blob(255), "JPEG", quality=quality))))
    look = look_at_mask(encode_png(after), info_of(2))
    assert look.kinds == ("jpeg_mask",)


def test_jpeg_content_whatever_its_name() -> None:
    look = look_at_mask(saved(blob(255), "JPEG", quality=90), info_of(2))
    assert look.kinds == ("jpeg_mask",) and look.two_level
    look = look_at_mask(saved(street_mask(), "JPEG", quality=90), info_of(5))
    assert look.kinds == ("jpeg_mask",)


def test_three_equal_channels_and_16_bits_are_told() -> None:
    mask = blob(1)
    for pixels in (np.repeat(mask[:, :, None], 3, axis=2), mask.astype(np.uint16)):
        look = look_at_mask(saved(pixels), info_of(2))
        assert look.kinds == ("mask_format",)
        assert look.ids is not None
        np.testing.assert_array_equal(look.ids, mask)


def test_colours_are_told_and_turned_where_dataset_yaml_has_them() -> None:
    info = info_of(2)
    colours = np.array([[0, 0, 255], [1, 0, 255]], np.uint8)  # those of info_of
    look = look_at_mask(saved(colours[blob(1)]), info)
    assert look.kinds == ("colour_mask",) and look.by_colour is not None
    np.testing.assert_array_equal(look.by_colour, blob(1))
    other = look_at_mask(saved(np.array([[0, 0, 0], [200, 0, 0]], np.uint8)[blob(1)]), info)
    assert other.by_colour is None and other.colours == ("#000000", "#c80000")


def test_palette_indices_are_ids_unless_only_their_colours_fit() -> None:
    info = info_of(2)
    image = Image.fromarray(blob(1), mode="P")
    image.putpalette([9, 9, 9, 8, 8, 8])
    target = BytesIO()
    image.save(target, "PNG")
    assert look_at_mask(target.getvalue(), info).kinds == ()
    image = Image.fromarray(blob(7, 6), mode="P")
    image.putpalette([*[50] * 18, 0, 0, 255, 1, 0, 255])
    target = BytesIO()
    image.save(target, "PNG")
    look = look_at_mask(target.getvalue(), info)
    assert look.kinds == ("colour_mask",) and look.by_colour is not None
    np.testing.assert_array_equal(look.by_colour, blob(1))


def together(info: DatasetInfo, *masks: set[int], pixels: dict[int, int] | None = None, times: int = 6) -> Together:
    return read_together(info, {frozenset(mask): times for mask in masks}, pixels or {})


def test_255_stands_for_1_only_where_it_never_stands_beside_it() -> None:
    two = info_of(2)
    assert together(two, {0, 255}, {0}).binary
    assert together(two, {0, 255}, {0, 1}).binary
    assert not together(two, {0, 255}, {0, 1, 255}).binary
    assert not together(two, {0, 1}).binary
    assert together(info_of(5), {0, 255}).binary
    assert not together(info_of(5), {0, 255}, {0, 1, 4}).binary


def test_an_offset_is_named_only_where_nothing_else_explains_the_ids() -> None:
    five = info_of(5)
    assert together(five, {1, 2, 5}, {3, 4, 255}).shift == 1
    assert together(five, {0, 2, 5}, {1, 3, 4}).shift == 0  # 0 is used: class 5 may just be undeclared
    assert together(five, {1, 2, 3, 4}).shift == 0  # class 0 is absent, that is all
    assert together(five, {1, 2, 5}, times=4).shift == 0  # too few masks to say
    assert together(five, {255, 0, 2, 254}, {1, 3}).shift == -1
    assert together(five, {0, 1, 2, 3, 255}).shift == 0
    assert together(info_of(11, ignore_id=11), {0, 5, 10, 11}).shift == 0


def test_much_ignored_without_the_last_class_is_only_hinted_at() -> None:
    five = info_of(5)
    found = together(five, {255, 0, 1, 2, 3}, pixels={255: 40, 0: 60})
    assert found.shift == 0 and "40% of all pixels are 255" in found.lost
    assert together(five, {255, 0, 1, 2, 3}, pixels={255: 10, 0: 90}).lost == ""
    assert together(five, {255, 0, 1, 2, 3, 4}, pixels={255: 40, 0: 60}).lost == ""


def test_gaps_in_the_ids() -> None:
    assert together(info_of(4), {0, 1}, {2, 5}).renumber == {5: 3}
    assert together(info_of(4), {0, 1, 2}, {3, 5}).renumber is None  # an undeclared class, no gap
    assert together(info_of(4), {0, 1, 3}).unused == (2,)


def test_ids_come_back_from_their_offset() -> None:
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    info = info_of(3)
    np.testing.assert_array_equal(unshift(np.array([[1, 2, 3, 255]], np.uint8), 1, info), mask)
    np.testing.assert_array_equal(unshift(np.array([[255, 0, 1, 254]], np.uint8), -1, info), mask)


@pytest.mark.parametrize("value", range(1, 9))
def test_masks_turn_as_pillow_turns_images(value: int) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = value
    content = saved(pixels, exif=exif)
    assert orientation(content) == value
    from PIL import ImageOps

    upright = np.array(ImageOps.exif_transpose(Image.open(BytesIO(content))))
    np.testing.assert_array_equal(turn(pixels, value), upright)


def test_where_sizes_do_not_tell_the_contrast_does() -> None:
    image, mask = draw_street((128, 128), seed=3, sequence=1, frame=0)
    stored = np.ascontiguousarray(np.rot90(mask, 1))  # drawn on the pixels as stored, orientation 6
    assert fits_turned(image, stored, 6) is True
    assert fits_turned(image, mask, 6) is False
    assert fits_turned(np.full((64, 64, 3), 9, np.uint8), blob(1), 3) is None
    assert fits_turned(image[:100], stored[:, :100], 6) is True  # 100 x 128 upright: only turned it fits


def test_flat_images() -> None:
    image = np.full((40, 50, 3), 7, np.uint8)
    assert is_flat(image)
    image[3, 3] = 9
    assert is_flat(image)
    image[3, 3] = 10
    assert not is_flat(image)


def mend(mask: np.ndarray, info: DatasetInfo, *kinds: str, content: bytes | None = None, **more: object) -> np.ndarray:
    facts = {"together": Together(), "size": mask.shape, **more}
    mended = repair_mask(look_at_mask(content or encode_png(mask), info), kinds, info=info, **facts)
    assert mended is not None
    return mended


def test_repairs_give_the_ids_back() -> None:
    two, five = info_of(2), info_of(5)
    np.testing.assert_array_equal(mend(blob(255), two, "binary_0_255"), blob(1))
    street = street_mask()
    up = np.where(street == 255, street, street + 1).astype(np.uint8)
    np.testing.assert_array_equal(mend(up, five, "shifted_ids", together=Together(shift=1)), street)
    np.testing.assert_array_equal(mend(street - np.uint8(1), five, "shifted_ids", together=Together(shift=-1)), street)
    np.testing.assert_array_equal(mend(np.rot90(street), five, "exif_rotated", orientation=6), street)
    small = mend(blob(1, size=64), two, "off_by_a_pixel", size=(65, 64))
    assert small.shape == (65, 64) and set(np.unique(small)) == {0, 1}


def test_soft_edges_become_hard_within_a_pixel() -> None:
    five = info_of(5)
    hard = np.repeat(np.repeat(street_mask(), 2, axis=0), 2, axis=1)
    mended = mend(doubled(street_mask()), five, "soft_edges")
    assert (mended == hard).mean() > 0.97
    assert (mend(doubled(blob(255)), info_of(2), "soft_edges", "binary_0_255") <= 1).all()


def test_a_jpeg_of_two_levels_is_cut_in_the_middle() -> None:
    content = saved(blob(255), "JPEG", quality=75)
    np.testing.assert_array_equal(mend(blob(1), info_of(2), "jpeg_mask", content=content), blob(1))


def test_what_cannot_be_mended_is_left() -> None:
    five = info_of(5)
    content = saved(street_mask(), "JPEG", quality=90)
    facts = {"info": five, "together": Together(), "size": (128, 128)}
    assert repair_mask(look_at_mask(content, five), ["jpeg_mask"], **facts) is None
    assert repair_mask(look_at_mask(encode_png(blob(9)), five), ["exif_rotated"], **facts) is None
