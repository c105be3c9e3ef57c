"""What `segmill init` says of the splits: what each is for and holds, and what the gate can decide with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.commands.division import division, gate_line
from segmill.metrics.intervals import LEAST_GROUPS
from segmill.promotion.gate import decide


def test_each_split_is_said_with_its_purpose_images_and_groups(street: Path) -> None:
    train, val, test, gate = division(street, 0.95)
    assert train == "train: 40 images (50%) in 4 groups; what members learn from"
    assert val == "val: 20 images (25%) in 2 groups; chooses epochs and the ensemble's weights"
    assert test == "test: 20 images (25%) in 2 groups; judges: the report's figures and the gate"
    assert gate.startswith("the gate promotes the first version that reaches promotion.floor_miou; of later ones")


def test_a_split_without_a_group_is_said_with_what_helps() -> None:
    said = gate_line({"train": 1, "val": 0, "test": 0}, 0.95)
    assert said.startswith("no group is in val and test, ") and "add samples of other groups" in said


@pytest.mark.parametrize(("groups", "reach"), [(3, 4.3), (5, 2.8), (60, 2.0)])  # Student's t in a table
def test_few_groups_widen_the_interval(groups: int, reach: float) -> None:
    said = gate_line({"train": 9, "val": 1, "test": groups}, 0.95)
    assert said.startswith(
        f"with {groups} test groups the gate's interval reaches {reach} standard errors to each side"
    )


def test_with_fewer_groups_the_gate_decides_nothing_as_it_is_said() -> None:
    counts = np.array([[[50, 50], [50, 50]]] * (LEAST_GROUPS - 1))
    better = np.array([[[100, 0], [0, 100]]] * (LEAST_GROUPS - 1))
    verdict = decide(better, counts, ["a", "b"], floor_miou=0.5, min_gain=0, confidence=0.95, seed=0)
    assert verdict.decision == "INCONCLUSIVE"
    assert "of later ones it can't say which is better" in gate_line({"train": 9, "val": 1, "test": 2}, 0.95)
