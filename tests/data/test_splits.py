from __future__ import annotations

from collections import Counter

import pytest

from segmill.data.splits import assign_splits
from segmill.errors import InputError

NAMES = [f"g{i}" for i in range(4000)]


def test_the_assignment_is_frozen() -> None:
    """Golden: whoever changes the hash moves samples between train and test in every existing set."""
    dealt = assign_splits([f"g{i}" for i in range(12)], val=0.25, test=0.25, seed=0, official={})
    assert "".join(dealt[f"g{i}"][1] for i in range(12)) == "eerrrrereaar"  # t(e)st, t(r)ain, v(a)l


def test_a_group_does_not_care_about_the_others() -> None:
    everyone = assign_splits(NAMES, val=0.2, test=0.1, seed=3, official={})
    few = assign_splits(NAMES[::7], val=0.2, test=0.1, seed=3, official={})
    assert few == {name: everyone[name] for name in NAMES[::7]}


def test_shares_are_met_and_the_seed_matters() -> None:
    dealt = assign_splits(NAMES, val=0.2, test=0.1, seed=3, official={})
    count = Counter(dealt.values())
    assert abs(count["val"] - 800) < 100  # 4 standard deviations: 4 * sqrt(4000 * 0.2 * 0.8)
    assert abs(count["test"] - 400) < 76
    assert assign_splits(NAMES, val=0.2, test=0.1, seed=4, official={}) != dealt


def test_a_larger_val_share_leaves_test_alone() -> None:
    dealt = [assign_splits(NAMES, val=val, test=0.1, seed=0, official={}) for val in (0.1, 0.3)]
    tested = [{name for name, split in groups.items() if split == "test"} for groups in dealt]
    assert tested[0] == tested[1]


def test_the_official_split_comes_first() -> None:
    official = {"test": ["g0", "g1"], "train": ["g2"]}
    dealt = assign_splits(NAMES, val=0.5, test=0.0, seed=0, official=official)
    assert (dealt["g0"], dealt["g1"], dealt["g2"]) == ("test", "test", "train")
    assert Counter(dealt.values())["test"] == 2


def test_an_official_group_that_no_sample_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"splits.test names group 'brain_1'.*did you mean 'brain_01'"):
        assign_splits(["brain_01"], val=0.1, test=0.1, seed=0, official={"test": ["brain_1"]})


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_shares_must_leave_a_train(val: float, test: float) -> None:
    with pytest.raises(InputError, match="sum below 1"):
        assign_splits(["a"], val=val, test=test, seed=0, official={})
