from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmill import progress
from segmill.data.loading.policy import read_policy
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.packed import PackedSplit, PackInfo
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.errors import InputError
from segmill.params import Params, parse_params, read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace, template
from tasks.augment import augment
from tasks.finetune import train_job
from tasks.inputs import write_inputs


@pytest.fixture
def packed(tmp_path: Path) -> Workspace:
    """Ten samples with a rare square each, as the stage prepare leaves them."""
    workspace = Workspace(tmp_path)
    for split, count in {"train": 10, "val": 1, "test": 1}.items():
        with SplitWriter(workspace.packed / split) as writer:
            for number in range(count):
                mask = np.zeros((32, 48), np.uint8)
                mask[10:15, 5 + 2 * number : 10 + 2 * number] = 1
                writer.add(Sample(f"{split}_{number}", "g", np.full((32, 48, 3), 9 * number, np.uint8), mask))
    info = PackInfo(
        "squares", ("floor", "square"), ("#000000", "#ff0000"), 255, (32, 48), (0.5,) * 3, (0.3,) * 3, (15110, 250),
        {"train": 10, "val": 1, "test": 1},
    )  # fmt: skip
    (workspace.packed / "pack.json").write_text(json.dumps(asdict(info)))
    return workspace


def params(**block: Any) -> Params:
    values = read_params(template("params.yaml")).model_dump(mode="json")
    return parse_params(values | {"augment": values["augment"] | block}, "params.yaml")


def test_the_stage_leaves_the_policy_and_the_extra_samples(packed: Workspace) -> None:
    augment(packed, params(recipe="driving", copy_paste=0.5, oversample=0.2))
    policy = read_policy(packed.augmented / "recipe.json")
    assert (policy.title, policy.transforms) == ("driving@2", settle_policy("driving").transforms)
    assert policy.extra == {"copy_paste": 5, "balance": 2}
    assert len(PackedSplit(packed.packed / "train", packed.augmented / "extra")) == 17
    assert progress.read(packed.count("augment")) == {"done": 7, "total": 7}
    augment(packed, params(recipe="medical@1"))
    assert [path.name for path in packed.augmented.iterdir()] == ["recipe.json"]
    assert read_policy(packed.augmented / "recipe.json").extra == {"copy_paste": 0, "balance": 0}


@pytest.mark.slow
def test_a_written_out_recipe_is_tried_before_it_is_taken(packed: Workspace) -> None:
    augment(packed, params(recipe=[{"RandomRotate90": {"p": 0.5}}, {"Blur": {}}]))
    before = (packed.augmented / "recipe.json").read_text()
    assert json.loads(before)["transforms"] == [{"RandomRotate90": {"p": 0.5}}, {"Blur": {}}]
    with pytest.raises(InputError, match="RandomCrop fails on an image of 32 x 48 px"):
        augment(packed, params(recipe=[{"RandomCrop": {"height": 40, "width": 40}}]))
    assert (packed.augmented / "recipe.json").read_text() == before


def test_a_member_trains_on_the_extra_samples_and_its_record_says_how_many(workspace: Workspace) -> None:
    write_inputs(workspace, read_params(workspace.params))
    set_params(workspace.params, ["ray.cpus_per_worker=1"])
    settled = settle_policy("medical")
    workspace.augmented.mkdir()
    (workspace.augmented / "recipe.json").write_text(json.dumps(asdict(settled) | {"extra": {"balance": 3}}))
    without = train_job(workspace, read_params(workspace.params), "lite0-unet", workspace.root / "out")
    assert (without.data.extra_dir, without.data.policy.transforms) == (None, settled.transforms)
    (workspace.augmented / "extra").mkdir()
    job = train_job(workspace, read_params(workspace.params), "lite0-unet", workspace.root / "out")
    assert job.data.extra_dir == workspace.augmented / "extra"
    assert job.record()["augment"] == {
        "recipe": "medical@1", "recipe_sha256": settled.sha256, "extra_samples": {"balance": 3},
    }  # fmt: skip
