"""Which member is expected to take how long, by what such ones took before."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.pack import pack
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.params import Params, read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.finetune import curves_path
from tasks.training_costs import expected_seconds, note_seconds

NETWORK = {"backbone": "resnet18", "decoder": "fpn", "weights": "none", "lr": 0.003}


@pytest.fixture
def prepared(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = workspace.root / read_params(workspace.params).data.path
    validate_dataset(raw, workspace.manifest, shares=SplitShares(0.25, 0.25, 0))
    pack(raw, workspace.manifest, workspace.packed)
    workspace.augmented.mkdir(parents=True)
    settle_policy("none").write(workspace.augmented / "recipe.json")
    yaml = YAML()
    members: dict[str, Any] = {"a": NETWORK, "b": {**NETWORK, "decoder": "unet"}, "svm": {"kind": "svm"}}
    params = yaml.load(workspace.params)
    params["train"] |= {"epochs": 10}
    yaml.dump(params | {"members": members}, workspace.params)
    set_params(workspace.params, ["ray.cpus_per_worker=1"])
    return workspace


def trained(workspace: Workspace, name: str, epochs: int, seconds: float) -> Params:
    """Leave the curve of a training and note it."""
    path = curves_path(workspace, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "seconds"])
        writer.writeheader()
        writer.writerows({"epoch": number + 1, "seconds": seconds} for number in range(epochs))
    params = read_params(workspace.params)
    note_seconds(workspace, params, name)
    return params


def test_what_never_ran_may_take_for_ever_and_a_time_budget_is_the_most(prepared: Workspace) -> None:
    params = read_params(prepared.params)
    assert expected_seconds(prepared, params) == {"a": math.inf, "b": math.inf, "svm": math.inf}
    set_params(prepared.params, ["train.max_minutes=2", "members.svm.max_minutes=0.5"])
    assert expected_seconds(prepared, read_params(prepared.params)) == {"a": 120, "b": 120, "svm": 30}


def test_a_training_takes_what_one_like_it_took_by_epochs_pixels_and_cores(prepared: Workspace) -> None:
    trained(prepared, "a", epochs=4, seconds=3.0)  # it stopped early
    params = trained(prepared, "svm", epochs=1, seconds=7.0)
    assert expected_seconds(prepared, params) == pytest.approx({"a": 30.0, "b": math.inf, "svm": 7.0})
    set_params(prepared.params, ["train.epochs=20", "members.a.lr=0.5", "train.seed=3"])
    assert expected_seconds(prepared, read_params(prepared.params))["a"] == pytest.approx(60.0)
    set_params(prepared.params, ["ray.cpus_per_worker=2"])
    assert expected_seconds(prepared, read_params(prepared.params))["a"] == pytest.approx(30.0)
    set_params(prepared.params, ["ray.workers=3"])
    assert expected_seconds(prepared, read_params(prepared.params))["a"] == pytest.approx(10.0)
    set_params(prepared.params, ["train.batch_size=3"])
    assert expected_seconds(prepared, read_params(prepared.params))["a"] == math.inf, "another speed"
