from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmill.data.schema.manifest import SPLITS, ClassInfo, DatasetInfo
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import (
    assign_new,
    assign_splits,
    freeze,
    part_of_group,
    read_frozen,
    whole_group,
    write_frozen,
)
from segmill.errors import InputError

NAMES = [f"g{i}" for i in range(4000)]


def test_the_assignment_is_frozen() -> None:
    """Golden: whoever changes the hash moves samples between train and test in every existing set."""
    assigned = assign_splits([f"g{i}" for i in range(12)], shares=SplitShares(0.25, 0.25, 0), official={})
    assert "".join(assigned[f"g{i}"][1] for i in range(12)) == "eerrrrereaar"  # t(e)st, t(r)ain, v(a)l


def test_a_group_does_not_care_about_the_others() -> None:
    everyone = assign_splits(NAMES, shares=SplitShares(0.2, 0.1, 3), official={})
    few = assign_splits(NAMES[::7], shares=SplitShares(0.2, 0.1, 3), official={})
    assert few == {name: everyone[name] for name in NAMES[::7]}


def test_shares_are_met_and_the_seed_matters() -> None:
    assigned = assign_splits(NAMES, shares=SplitShares(0.2, 0.1, 3), official={})
    count = Counter(assigned.values())
    assert abs(count["val"] - 800) < 100  # 4 standard deviations: 4 * sqrt(4000 * 0.2 * 0.8)
    assert abs(count["test"] - 400) < 76
    assert assign_splits(NAMES, shares=SplitShares(0.2, 0.1, 4), official={}) != assigned


def test_a_larger_val_share_leaves_test_alone() -> None:
    assigned = [assign_splits(NAMES, shares=SplitShares(val, 0.1, 0), official={}) for val in (0.1, 0.3)]
    tested = [{name for name, split in groups.items() if split == "test"} for groups in assigned]
    assert tested[0] == tested[1]


def test_the_official_split_comes_first() -> None:
    official = {"test": ["g0", "g1"], "train": ["g2"]}
    assigned = assign_splits(NAMES, shares=SplitShares(0.5, 0.0, 0), official=official)
    assert (assigned["g0"], assigned["g1"], assigned["g2"]) == ("test", "test", "train")
    assert Counter(assigned.values())["test"] == 2


def test_an_official_group_that_no_sample_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"splits.test names group 'brain_1'.*did you mean 'brain_01'"):
        assign_splits(["brain_01"], shares=SplitShares(0.1, 0.1, 0), official={"test": ["brain_1"]})


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_shares_must_leave_a_train(val: float, test: float) -> None:
    with pytest.raises(InputError, match="sum below 1"):
        assign_splits(["a"], shares=SplitShares(val, test, 0), official={})


def test_the_official_split_beats_the_frozen_one_beats_the_hash() -> None:
    frozen = {"g0": "val", "g1": "val", "gone": "test"}
    assigned = assign_splits(["g0", "g1", "g2"], shares=SplitShares(0, 0, 0), official={"test": ["g0"]}, frozen=frozen)
    assert assigned == {"g0": "test", "g1": "val", "g2": "train"}


def test_frozen_splits_are_written_and_read_back(tmp_path: Path) -> None:
    frozen = {"b, c": "test", 'a"': "train", "ä": "val"}
    write_frozen(tmp_path, frozen)
    assert read_frozen(tmp_path) == frozen
    assert (tmp_path / "splits.csv").read_bytes() == 'group,split\n"a""",train\n"b, c",test\nä,val\n'.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["splits.csv"]
    assert read_frozen(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("split,group\n", r"splits\.csv: line 1 is 'split,group'; it must be 'group,split'"),
        ("group,split\na,train\nb,tset\n", "line 3 is 'b,tset'.*one of train, val, test; did you mean 'test'"),
        ("group,split\na\n", "line 2 is 'a'"),
        ("group,split\na,train\na,val\n", "line 3 puts group 'a' into val, an earlier line into train"),
    ],
)
def test_a_malformed_splits_csv_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_frozen(tmp_path)


def pixels(*shown: str) -> dict[str, np.ndarray]:
    """Groups g0, g1, ... with 5 px of each class whose digit the string holds; three classes."""
    return {f"g{i}": np.array([5 * (str(k) in classes) for k in range(3)], np.int64) for i, classes in enumerate(shown)}


def missing(assigned: dict[str, str], class_pixels: dict[str, np.ndarray]) -> int:
    """Number of (split, class) pairs without a pixel, of classes that any group shows."""
    total = sum(class_pixels.values())
    held = {split: sum((class_pixels[g] for g in assigned if assigned[g] == split), 0 * total) for split in SPLITS}
    return sum(int(((held[split] == 0) & (total > 0)).sum()) for split in SPLITS)


def test_a_rare_class_comes_to_every_split() -> None:
    shown = pixels(
        "01", "0", "0", "012", "0", "02", "01", "0", "012", "0", "01", "0", "0", "0", "0", "0", "0", "0", "0", "0"
    )
    assigned = assign_new({}, shown, shares=SplitShares(0.15, 0.15, 0))
    assert Counter(assigned.values()) == {"train": 14, "val": 3, "test": 3}
    assert sorted(assigned[g] for g in ("g3", "g5", "g8")) == ["test", "train", "val"]  # the three with class 2
    assert missing(assigned, shown) == 0


def test_a_class_of_two_groups_goes_to_train_and_test() -> None:
    for seed in range(5):
        shown = pixels("01", "0", "0", "0", "01", "0", "0", "0")
        assigned = assign_new({}, shown, shares=SplitShares(0.25, 0.25, seed))
        assert {assigned["g0"], assigned["g4"]} == {"train", "test"}
        only = assign_new({}, pixels("01", "0", "0", "0", "0"), shares=SplitShares(0.2, 0.2, seed))
        assert only["g0"] == "train"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (3, 1, 1)), (10, (7, 1, 2)), (40, (28, 6, 6))],
)
def test_few_groups_still_fill_the_splits(count: int, expected: tuple[int, int, int]) -> None:
    assigned = Counter(assign_new({}, pixels(*["0"] * count), shares=SplitShares(0.15, 0.15, 1)).values())
    assert tuple(assigned[split] for split in SPLITS) == expected


def test_new_groups_make_up_for_what_is_settled() -> None:
    """Ten settled groups are all train; of ten new ones val and test take 3 each, their share of twenty."""
    shown = pixels(*["01"] * 20)
    settled = {f"g{i}": "train" for i in range(10)}
    assigned = assign_new(settled, shown, shares=SplitShares(0.15, 0.15, 0))
    assert not assigned.keys() & settled.keys()
    assert Counter(assigned.values()) == {"train": 4, "val": 3, "test": 3}


def test_a_class_that_settled_groups_have_in_train_goes_elsewhere() -> None:
    shown = pixels("02", "0", "0", "02", "0", "02")
    settled = {"g0": "train", "g1": "val", "g2": "test"}
    assigned = assign_new(settled, shown, shares=SplitShares(0.33, 0.33, 0))
    assert {assigned["g3"], assigned["g5"]} == {"val", "test"} and assigned["g4"] == "train"


def test_the_seed_decides_between_equals_only() -> None:
    alike = pixels(*["0"] * 12)
    assert len({tuple(sorted(assign_new({}, alike, shares=SplitShares(0.2, 0.2, s)).items())) for s in range(4)}) > 1
    unlike = pixels("012", "01", "0")  # class 2 belongs to train, so class 1's second group goes to test
    assert {tuple(sorted(assign_new({}, unlike, shares=SplitShares(0.3, 0.3, s)).items())) for s in range(4)} == {
        (("g0", "train"), ("g1", "test"), ("g2", "val"))
    }


def test_of_ways_that_spread_the_classes_alike_the_one_with_the_shares_in_pixels_is_taken() -> None:
    """CamVid's sequences, the last of which its source puts into val: the smallest becomes val, whatever the seed."""
    shown = {"0001TP": 62, "0006R0": 101, "0016E5@train": 204, "0016E5@val": 101}
    sizes = {group: np.full(11, images) for group, images in shown.items()}
    for seed in range(5):
        assigned = assign_new({"0016E5@val": "test"}, sizes, shares=SplitShares(0.15, 0.15, seed))
        assert assigned == {"0001TP": "val", "0006R0": "train", "0016E5@train": "train"}


GROUPS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 7), min_size=1, max_size=7)


def as_pixels(classes: dict[str, int]) -> dict[str, np.ndarray]:
    return {group: np.array([bits >> k & 1 for k in range(3)], np.int64) for group, bits in classes.items()}


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 7), min_size=1), st.integers(0, 3))
def test_no_deal_of_these_sizes_would_spread_the_classes_further(classes: dict[str, int], seed: int) -> None:
    shown = as_pixels(classes)
    assigned = assign_new({}, shown, shares=SplitShares(0.2, 0.2, seed))
    others = set(itertools.permutations(assigned.values()))
    assert missing(assigned, shown) == min(
        missing(dict(zip(assigned, splits, strict=True)), shown) for splits in others
    )


@settings(deadline=None, max_examples=40)
@given(GROUPS, GROUPS, st.floats(0, 0.45), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 3), st.randoms())
def test_a_sample_never_changes_its_split(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[str, int],
    after: dict[str, int],
    val: float,
    test: float,
    other: float,
    seed: int,
    random,
) -> None:
    """Whatever groups come or go, whatever the shares and the seed become, in whatever order groups are named."""
    folder = tmp_path_factory.mktemp("set")
    info = DatasetInfo("x", (ClassInfo(0, "a", "#000000"), ClassInfo(1, "b", "#ffffff")))
    write_frozen(folder, {})
    first = freeze(folder, info, as_pixels(before), shares=SplitShares(val, test, seed))
    names = list(after)
    random.shuffle(names)
    second = freeze(folder, info, as_pixels({g: after[g] for g in names}), shares=SplitShares(test, other, seed + 1))
    assert second == first | {g: second[g] for g in after.keys() - first.keys()}
    assert read_frozen(folder) == second
    assert assign_splits(after, shares=SplitShares(0, 0, 9), official={}, frozen=second) == {
        g: second[g] for g in after
    }
    again = freeze(folder, info, as_pixels(before | after), shares=SplitShares(other, val, seed))
    assert again == second
    assert assign_new(first, as_pixels(dict(sorted(after.items()))), shares=SplitShares(test, other, seed + 1)) == {
        g: second[g] for g in after.keys() - first.keys()
    }


def test_a_set_from_before_splits_csv_keeps_its_hash(tmp_path: Path) -> None:
    info = DatasetInfo(
        "x", (ClassInfo(0, "a", "#000000"), ClassInfo(1, "b", "#ffffff")), splits={"test": ("g3", "later")}
    )
    shown = pixels(*["01"] * 30)
    frozen = freeze(tmp_path, info, shown, shares=SplitShares(0.2, 0.2, 5))
    assert frozen == assign_splits(shown, shares=SplitShares(0.2, 0.2, 5), official={"test": ("g3",)})
    grown = freeze(tmp_path, info, shown | {"later": np.array([1, 0, 0])}, shares=SplitShares(0.2, 0.2, 5))
    assert grown == frozen | {"later": "test"}


def test_ten_thousand_groups_take_seconds() -> None:
    random = np.random.default_rng(0)
    table = random.random((10_000, 20)) < np.geomspace(1, 0.0003, 20)
    shown = {f"g{i}": row.astype(np.int64) for i, row in enumerate(table)}
    began = time.process_time()
    assigned = assign_new({}, shown, shares=SplitShares(0.1, 0.2, 0))
    assert time.process_time() - began < 5
    assert Counter(assigned.values()) == {"train": 7000, "val": 1000, "test": 2000}
    for k in range(20):
        count = Counter(assigned[g] for g, row in shown.items() if row[k])
        assert abs(count["val"] - 0.1 * table[:, k].sum()) <= 1.5
        assert abs(count["test"] - 0.2 * table[:, k].sum()) <= 1.5


@pytest.mark.parametrize(
    ("name", "whole"),
    [("x", "x"), ("x@train", "x"), ("a@b@test", "a@b"), ("me@home", "me@home"), ("@val", "@val"), ("x@", "x@")],
)
def test_a_part_names_the_group_it_is_of(name: str, whole: str) -> None:
    assert whole_group(name) == whole
    assert whole_group(part_of_group(name, "val")) == name


def test_empty_lines_of_splits_csv_count_for_nothing_and_other_encodings_are_said(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("group,split\n\na,train\n\n")
    assert read_frozen(tmp_path) == {"a": "train"}
    (tmp_path / "splits.csv").write_bytes("group,split\nä,train\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not a UTF-8 table of comma-separated values"):
        read_frozen(tmp_path)
