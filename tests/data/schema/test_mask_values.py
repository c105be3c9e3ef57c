from __future__ import annotations

import numpy as np
import pytest

from segmill.data.schema.manifest import ClassInfo, DatasetInfo
from segmill.data.schema.mask_values import (
    Census,
    colours_to_ids,
    distinct_colours,
    distinct_palette,
    ids_by_info,
    propose_classes,
)
from segmill.data.storage.images import RawMask
from segmill.errors import InputError

BLACK, RED, ODD = (0, 0, 0), (255, 0, 0), (1, 2, 3)
COLOURED = np.array([[BLACK, RED, RED], [ODD, BLACK, RED]], np.uint8)
INFO = DatasetInfo("set", (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "roof", "#ff0000")), ignore_id=9)


def census(*masks: RawMask) -> Census:
    """Count each mask on its own and add up, as processes do."""
    total = Census()
    for mask in masks:
        part = Census()
        part.add(mask)
        total.merge(part)
    return total


def raw(values: object, **more: object) -> RawMask:
    return RawMask(np.array(values), **more)


def test_distinct_colours_are_counted() -> None:
    assert distinct_colours(COLOURED) == {"#000000": 2, "#010203": 1, "#ff0000": 3}


def test_proposed_classes_are_named_after_css_or_the_colour() -> None:
    classes = propose_classes(["#FF0000", "#010203", "#000000"])
    assert [(c.id, c.name, c.color) for c in classes] == [
        (0, "black", "#000000"),
        (1, "colour_010203", "#010203"),
        (2, "red", "#ff0000"),
    ]
    with pytest.raises(InputError, match="1 different colours"):
        propose_classes(["#000000"])


def test_colours_become_ids_and_strange_ones_are_named_with_the_closest() -> None:
    classes = propose_classes(distinct_colours(COLOURED))
    assert colours_to_ids(COLOURED, classes).tolist() == [[0, 2, 2], [1, 0, 2]]
    with pytest.raises(InputError, match=r"#ff0000 \(3 px\), #010203 \(1 px\) \(closest to #ff0000 is #fe0000\)"):
        colours_to_ids(COLOURED, (ClassInfo(0, "a", "#000000"), ClassInfo(1, "b", "#fe0000")))


def test_large_masks_are_looked_up_whole() -> None:
    mask = np.zeros((1100, 1000, 3), np.uint8)  # more than one block
    mask[1099, 999] = RED
    ids = colours_to_ids(mask, propose_classes(["#000000", "#ff0000"]))
    assert (int(ids.sum()), int(ids[1099, 999])) == (1, 1)


def test_the_palette_is_vocs() -> None:
    # The first lines of VOC's colour map, and 255 as (224, 224, 192).
    assert distinct_palette(5) == ["#000000", "#800000", "#008000", "#808000", "#000080"]
    whole = distinct_palette(256)
    assert (len(set(whole)), whole[255]) == (256, "#e0e0c0")


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        ([[0, 1, 2]], ["class_0", "class_1", "class_2"], [0, 1, 2]),
        ([[0, 1, 255]], ["background", "foreground"], [0, 1, 255]),
        ([[0, 255, 0]], ["background", "foreground"], [0, 1, 0]),
        ([[0, 3, 3]], ["background", "foreground"], [0, 1, 1]),
        ([[0, 2, 3]], ["class_0", "class_1", "class_2", "class_3"], [0, 2, 3]),  # 1 is just not shown
        ([[0, 100, 200]], ["value_0", "value_100", "value_200"], [0, 1, 2]),
    ],
)
def test_values_are_read_as_ids_where_they_can_be(values: object, names: list[str], ids: list[int]) -> None:
    scheme, _ = census(raw(values)).propose()
    assert [c.name for c in scheme.classes] == names
    assert scheme.to_ids(raw(values))[0].tolist() == ids
    assert len({c.color for c in scheme.classes}) == len(names)


def test_16_bit_values_are_packed_and_65535_is_ignored() -> None:
    mask = raw([[0, 1, 65535]], top=65535)
    assert census(mask).propose()[0].to_ids(mask).tolist() == [[0, 1, 255]]
    sparse = raw([[0, 1000, 40000]], top=65535)
    scheme, said = census(sparse).propose()
    assert scheme.to_ids(sparse).tolist() == [[0, 1, 2]]
    assert said.startswith("the masks hold the 3 values 0, 1000, 40000: ids were assigned in this order")


def test_one_mask_that_is_seen_later_must_fit() -> None:
    scheme, _ = census(raw([[0, 1, 2]])).propose()
    with pytest.raises(InputError, match=r"values that are no class: 7 \(2 px\)"):
        scheme.to_ids(raw([[0, 7, 7]]))


def test_smoothed_masks_are_refused() -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    with pytest.raises(InputError, match="without anti-aliasing"):
        census(RawMask(smooth))
    with pytest.raises(InputError, match="256 different values"):
        census(raw([[*range(0, 512, 2)]], top=65535)).propose()


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([[0, 1, 9]], [0, 1, 9]),
        ([[BLACK, RED, BLACK]], [0, 1, 0]),
    ],
)
def test_a_set_with_a_class_map_reads_ids_and_its_colours(values: object, ids: list[int]) -> None:
    assert ids_by_info(raw(values), INFO)[0].tolist() == ids


def test_a_palette_with_the_classes_colours_is_read_by_colour() -> None:
    mask = raw([[0, 1, 0]], palette=np.array([RED, BLACK], np.uint8))
    assert ids_by_info(mask, INFO)[0].tolist() == [1, 0, 1]
    other = raw([[0, 1, 0]], palette=np.array([RED, ODD], np.uint8))
    assert ids_by_info(other, INFO)[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("values", [[[0, 255, 0]], [[0, 3, 3]], [[0, 100, 200]], [[0, 1, 2]]])
def test_what_was_proposed_once_is_read_alike_afterwards(values: object) -> None:
    scheme, _ = census(raw(values)).propose()
    info = DatasetInfo("set", scheme.classes)
    np.testing.assert_array_equal(ids_by_info(raw(values), info), scheme.to_ids(raw(values)))


def test_values_outside_the_class_map_are_named() -> None:
    with pytest.raises(InputError, match=r"values that are no class: 4 \(1 px\)"):
        ids_by_info(raw([[0, 4, 1]]), INFO)
    with pytest.raises(InputError, match=r"colours that are no class: #010203"):
        ids_by_info(RawMask(COLOURED), INFO)
