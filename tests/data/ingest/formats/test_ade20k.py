from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.data.ingest.formats import open_layout


@pytest.fixture
def ade(tmp_path: Path, save) -> Path:
    for part, key in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        save(f"set/images/{part}/{key}.jpg", np.full((2, 2, 3), 9))
        save(f"set/annotations/{part}/{key}.png", [[0, 1], [2, 150]])
    return tmp_path / "set"


def test_ids_lose_one_and_unlabelled_is_ignored(ade: Path, take) -> None:
    (ade / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n"
        "2\t0.1\t6046\t612\t1\tbuilding, edifice\n150\t0.0001\t332\t36\t0\tflag\n"
    )
    found = open_layout(ade)
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("ade20k", 2, {})
    assert taken.mask("ADE_train_1") == [[255, 0], [1, 149]]
    assert taken.places() == {"ADE_train_1": (None, None), "ADE_val_1": (None, "test")}
    assert found.info.num_classes == 150
    names = found.info.class_names
    assert (names[0], names[1], names[2], names[149]) == ("wall", "building", "class_3", "flag")
    assert len(set(found.info.colors)) == 150
    assert not any("numbered" in note for note in found.notes)


def test_without_the_list_of_names_classes_are_numbered(ade: Path) -> None:
    found = open_layout(ade)
    assert found.info.class_names[:2] == ("class_1", "class_2")
    assert found.notes[0] == ("objectInfo150.txt is not there, so the classes are numbered")


def test_a_value_above_150_and_a_bad_line_are_found(ade: Path, save, take) -> None:
    save("set/annotations/training/ADE_train_1.png", [[0, 1], [2, 151]])
    (ade / "objectInfo150.txt").write_text("1\twall\n151\tghost\nnonsense\n")
    taken = take(open_layout(ade))
    assert sorted(taken.samples) == ["ADE_val_1"]
    assert "the value 151" in taken.issues["annotations/training/ADE_train_1.png"].what
    assert {"objectInfo150.txt, line 2", "objectInfo150.txt, line 3"} < set(taken.issues)
