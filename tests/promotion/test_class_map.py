"""Counts of two class maps on the classes that both have, against tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from segmill.errors import InputError
from segmill.metrics.counts import confusion_counts
from segmill.promotion.class_map import OTHER, CommonClasses, common_classes


def test_the_same_classes_are_left_as_they_are() -> None:
    common = common_classes(["a", "b"], ["a", "b"], {"a": ["b"]})
    counts = np.arange(8).reshape(2, 2, 2)
    assert common.names == ("a", "b")
    assert np.array_equal(common.of_today(counts), counts) and np.array_equal(common.of_known(counts), counts)


def test_other_ids_of_the_same_names_are_put_in_order() -> None:
    common = common_classes(["a", "b", "c"], ["c", "a", "b"], {})
    assert common.names == ("a", "b", "c")
    assert common.of_known(np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])).tolist() == [
        [[2, 3, 1], [5, 6, 4], [8, 9, 7]]
    ]


def test_several_former_classes_became_one() -> None:
    """Truth road, vehicle; the version knows road, car, truck: its columns 1 and 2 are added."""
    common = common_classes(["road", "vehicle"], ["road", "car", "truck"], {"car": ["vehicle"], "truck": ["vehicle"]})
    assert common.names == ("road", "vehicle")
    assert common.of_known(np.array([[[5, 1, 2], [3, 7, 4]]])).tolist() == [[[5, 3], [3, 11]]]
    assert common.of_today(np.array([[[6, 2], [1, 13]]])).tolist() == [[[6, 2], [1, 13]]]


def test_a_former_class_that_was_split_is_compared_as_one() -> None:
    """Truth road, car, truck; the version knows vehicle, road, and another order: rows 1 and 2 are added."""
    common = common_classes(["road", "car", "truck"], ["vehicle", "road"], {"vehicle": ["car", "truck"]})
    assert common.names == ("road", "car + truck")
    assert common.of_known(np.array([[[1, 9], [8, 2], [5, 3]]])).tolist() == [[[9, 1], [5, 13]]]
    today = np.array([[[9, 1, 0], [2, 6, 2], [0, 4, 4]]])
    assert common.of_today(today).tolist() == [[[9, 1], [2, 16]]]


def test_classes_that_share_pixels_over_several_steps_are_one() -> None:
    common = common_classes(["a", "b", "c", "d"], ["x", "y", "d"], {"x": ["a", "b"], "y": ["b", "c"]})
    assert common.names == ("a + b + c", "d") and common.known == (0, 0, 1) and common.today == (0, 0, 0, 1)


def test_a_class_that_is_gone_is_a_wrong_prediction() -> None:
    """The version says tram (column 1) of 4 px of road: they stay in road's row, as no class of both."""
    common = common_classes(["road", "car"], ["road", "tram", "car"], {"tram": []})
    assert common.names == ("road", "car", OTHER)
    assert common.of_known(np.array([[[5, 4, 1], [2, 3, 7]]])).tolist() == [[[5, 1, 4], [2, 7, 3], [0, 0, 0]]]
    assert common.of_today(np.array([[[8, 2], [1, 9]]])).tolist() == [[[8, 2, 0], [1, 9, 0], [0, 0, 0]]]


def test_a_class_whose_pixels_were_not_labelled_is_not_counted() -> None:
    """Truth road, car, cyclist: the row of cyclist goes, and who predicts cyclist elsewhere is wrong there."""
    common = common_classes(["road", "car", "cyclist"], ["road", "car"], {"": ["cyclist"]})
    assert common.names == ("road", "car", OTHER)
    assert common.of_known(np.array([[[5, 1], [2, 7], [3, 3]]])).tolist() == [[[5, 1, 0], [2, 7, 0], [0, 0, 0]]]
    today = np.array([[[4, 1, 1], [0, 8, 1], [1, 1, 4]]])
    assert common.of_today(today).tolist() == [[[4, 1, 1], [0, 8, 1], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("today", "known", "former", "said"),
    [
        (["road", "vehicle"], ["road", "vehicel"], {}, r"class 'vehicel'.*did you mean 'vehicle'.*former_classes"),
        (
            ["road", "car", "bus"],
            ["road", "car"],
            {},
            r"'bus', which is in none of its classes.*\[road, bus\]",
        ),
        (
            ["road", "car"],
            ["all", "road"],
            {"all": ["road", "car"]},
            "into one class, on which nothing can be compared",
        ),
        (["a", "b"], ["a", "b", "c"], {"b": ["a"], "c": ["a"]}, "class 'b', which is in none of its classes"),
    ],
)
def test_what_the_mapping_does_not_say_is_refused(
    today: list[str], known: list[str], former: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        common_classes(today, known, former)


def test_merged_counts_are_the_counts_of_merged_masks() -> None:
    """Mapping the ids of truth and predictions first, and counting then, gives the same tables."""
    rng = np.random.default_rng(0)
    today, known = ["sky", "car", "truck", "tree", "new"], ["tree", "vehicle", "sky", "gone"]
    common = common_classes(today, known, {"vehicle": ["car", "truck"], "gone": [], "": ["new"]})
    truth = rng.integers(0, 6, (20, 30))
    truth[truth == 5] = 255
    mine, theirs = rng.integers(0, 5, (20, 30)), rng.integers(0, 4, (20, 30))
    mapped = np.full((20, 30), 255)
    for number, name in enumerate(common.today):
        if number not in common.unlabelled:
            mapped[truth == number] = name
    rectangular = confusion_counts(truth, theirs, 5, 255)[None, :, :4]
    expected = [
        confusion_counts(mapped, np.array(numbers)[ids], len(common.names), 255)
        for numbers, ids in ((common.today, mine), (common.known, theirs))
    ]
    assert np.array_equal(common.of_today(confusion_counts(truth, mine, 5, 255)[None])[0], expected[0])
    assert np.array_equal(common.of_known(rectangular)[0], expected[1])
    assert isinstance(common, CommonClasses) and expected[0].sum() == expected[1].sum() > 0
