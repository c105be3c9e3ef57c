"""What `segmill init`, `validate` and `plan` say of the splits and of what the gate can decide with them."""

from __future__ import annotations

from pathlib import Path

from flows.commands.division import (
    Division,
    division_of_manifest,
    division_of_set,
    gate_forecast,
    gate_lines,
)
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.stage import run


def test_each_split_is_said_with_its_purpose_images_and_groups(street: Path) -> None:
    assert division_of_set(street).lines() == [
        "train: 40 images (50%) in 4 groups; what members learn from",
        "val: 20 images (25%) in 2 groups; chooses epochs and the ensemble's weights",
        "test: 20 images (25%) in 2 groups; judges: the report's figures and the gate",
    ]


def test_a_split_without_a_group_is_said_with_what_helps(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    (said,) = gate_lines(Division({"train": 3}, {"train": {"a"}}), params)
    assert said.startswith("no group is in val and test, ") and "add samples of other groups" in said
    few, todo = gate_lines(Division({"train": 3}, {split: {split} for split in ("train", "val", "test")}), params)
    assert "the gate can't promote a version over a champion on 1 test group: " in few and "add groups" in todo


def test_a_checked_set_is_divided_as_it_was_and_its_sealed_groups_count(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    for name in ("fingerprint", "validate"):
        run(workspace, name, params)
    divided = division_of_manifest(workspace.manifest)
    assert divided == division_of_set(workspace.root / params.data.path)
    assert (gate_forecast(divided, params).groups, gate_forecast(divided, params).sealed) == (2, False)
    set_params(workspace.params, [f"split.sealed=[{sorted(divided.groups['test'])[0]}]"])
    sealed = gate_forecast(divided, read_params(workspace.params))
    assert (sealed.groups, sealed.sealed) == (1, True)
