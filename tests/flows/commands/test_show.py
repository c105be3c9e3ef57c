from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.commands.show import show
from segmill.data.loading.augmentation import Augmenter
from segmill.data.loading.batches import TrainBatches
from segmill.data.loading.origins import read_origins
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.packed import PackedSplit
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.stage import run

PX = 64


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, _street_workspace: Workspace) -> Workspace:
    """Packed and augmented street scenes with extra samples of rare road users."""
    root = tmp_path_factory.mktemp("show") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    block = ["recipe=driving", "copy_paste=0.1", "oversample=0.1", "rare_below=0.15"]
    set_params(workspace.params, [*(f"augment.{line}" for line in block), "train.seed=4", "train.batch_size=7"])
    for name in ("fingerprint", "validate", "prepare", "augment"):
        run(workspace, name, read_params(workspace.params))
    return workspace


def halves(picture: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of the original and of what training saw: the upper two of four."""
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (2 * PX, 2 * PX + 4, 3)
    return pixels[:PX, :PX], pixels[:PX, PX + 4 :]


def test_the_picture_shows_what_the_loader_made(prepared: Workspace, tmp_path: Path) -> None:
    params = read_params(prepared.params)
    split = PackedSplit(prepared.packed / "train", prepared.augmented / "extra")
    augmenter = Augmenter(settle_policy("driving").transforms, (PX, PX), 4, ignore_id=255)
    batches = TrainBatches(split, augmenter, batch_size=params.train.batch_size, seed=4)
    images = [image.numpy() for batch in batches.epoch(3) for image in batch.image]
    origins = list(read_origins(prepared.augmented / "extra"))
    assert {origin.kind for origin in origins} == {"copy_paste", "balance"}
    in_order = [split.ids[index] for index in batches.samples(3)]
    for sample in (in_order[0], next(name for name in in_order if "+paste-" in name)):
        said = show(prepared, params, sample, 3, None, tmp_path / "new" / "shown.png")
        original, seen = halves(tmp_path / "new" / "shown.png")
        np.testing.assert_array_equal(original, split.image(split.ids.index(sample)))
        np.testing.assert_array_equal(seen, images[in_order.index(sample)])
        assert f"{sample}, packed and as lite0-unet sees it in epoch 3 (driving@2, seed 4)" in said[0]
        assert ("made from" in said[1]) == ("+" in sample)
        assert "lite0-unet is out of date (never ran here)" in said[-1]
    left_out = next(name for name in split.ids if name not in in_order)
    assert any(
        "epoch 3 leaves it out" in line for line in show(prepared, params, left_out, 3, None, tmp_path / "a.png")
    )


def test_the_seed_is_the_one_of_the_last_training(prepared: Workspace, tmp_path: Path) -> None:
    """params.yaml has moved on since; the member's record has not."""
    params = read_params(prepared.params)
    member = prepared.member("resnet18-linknet")
    member.mkdir(parents=True)
    trained = {"train": asdict(params.train) | {"seed": 9, "epochs": 2}}
    (member / "member.json").write_text(json.dumps({"params": trained}))
    split = PackedSplit(prepared.packed / "train")
    augmenter = Augmenter(settle_policy("driving").transforms, (PX, PX), 9, ignore_id=255)
    show(prepared, params, split.ids[0], 1, "resnet18-linknet", tmp_path / "shown.png")
    wanted, _ = augmenter(split.image(0), split.mask(0), epoch=1, sample=split.ids[0])
    np.testing.assert_array_equal(halves(tmp_path / "shown.png")[1], wanted)
    with pytest.raises(InputError, match="resnet18-linknet trains for 2 epochs, so there is no epoch 2; the last is 1"):
        show(prepared, params, split.ids[0], 2, "resnet18-linknet", tmp_path / "shown.png")


def test_what_cannot_be_shown_is_said_in_a_sentence(prepared: Workspace, tmp_path: Path) -> None:
    params, picture = read_params(prepared.params), tmp_path / "shown.png"
    sample = PackedSplit(prepared.packed / "train").ids[0]
    with pytest.raises(InputError, match=rf"train has no sample '{sample}0'; did you mean '{sample}'\?"):
        show(prepared, params, sample + "0", 0, None, picture)
    with pytest.raises(InputError, match=r"there is no member 'lite0-unit'; did you mean 'lite0-unet'\?"):
        show(prepared, params, sample, 0, "lite0-unit", picture)
    with pytest.raises(InputError, match="lite0-unet trains for 28 epochs, so there is no epoch 28; the last is 27"):
        show(prepared, params, sample, 28, None, picture)
    with pytest.raises(InputError, match=r"names no picture format; write --to NAME\.png"):
        show(prepared, params, sample, 0, None, tmp_path / "shown.txt")
    assert not picture.exists()


def test_the_command_prints_what_it_drew_and_has_help(prepared: Workspace, tmp_path: Path) -> None:
    sample = PackedSplit(prepared.packed / "train").ids[0]
    line = ["data", "show", "-w", str(prepared.root), "--sample", sample, "--to", str(tmp_path / "shown.png")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and sample in done.output and halves(tmp_path / "shown.png")
    done = CliRunner().invoke(app, ["data", "show", "--help"])
    assert done.exit_code == 0 and "--epoch" in done.output and "--member" in done.output


def test_before_anything_was_prepared_the_stage_is_named(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the prepare stage first"):
        show(workspace, read_params(workspace.params), "a", 0, None, tmp_path / "shown.png")


def test_the_module_is_light_until_it_draws() -> None:
    heavy = ("torch", "albumentations", "cv2")
    code = f"import sys, flows.commands.show; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
