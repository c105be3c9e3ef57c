from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from traffic import CAR, IGNORE, SIGN, SIZE, SKY, scene

from segmill.data.loading.extras import even_draw, make_extras, rare_classes, repeat_weights
from segmill.data.loading.origins import Origin, read_origins
from segmill.data.packing.packed import PackedSplit, PackInfo
from segmill.data.packing.writing import Sample, SplitWriter

MARKER = (255, 0, 255)  # the colour of everything in val and test


def write_packed(root: Path, train: list[Sample]) -> Path:
    for split in ("train", "val", "test"):
        with SplitWriter(root / split) as writer:
            for sample in train if split == "train" else [scene(20, [(CAR, 20, 20, 6, 10)])]:
                held_out = np.full_like(sample.image, MARKER)
                writer.add(sample if split == "train" else sample._replace(id=split, image=held_out))
    pixels = np.sum([np.bincount(sample.mask.ravel(), minlength=256)[:4] for sample in train], axis=0)
    info = PackInfo(
        "scenes", ("road", "sky", "car", "sign"), ("#804080", "#4682b4", "#1c3fd0", "#dcdc00"), IGNORE, SIZE,
        (0.5,) * 3, (0.2,) * 3, tuple(pixels.tolist()), {"train": len(train), "val": 1, "test": 1},
    )  # fmt: skip
    (root / "pack.json").write_text(json.dumps(asdict(info)))
    return root


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """20 scenes: cars in five of them, a sign in one."""
    things: list[list[tuple[int, int, int, int, int]]] = [[] for _ in range(20)]
    for number in (0, 4, 8, 12, 16):
        things[number] = [(CAR, 22, 5 + number, 6, 10)]
    things[16].append((SIGN, 12, 40, 5, 5))
    return write_packed(tmp_path / "packed", [scene(number, of) for number, of in enumerate(things)])


def make(packed: Path, out: Path, **options: object) -> dict[str, int]:
    given = {"copy_paste": 1.0, "oversample": 0.0, "rare_below": 0.05, "seed": 0, "mirror": False}
    return make_extras(packed, out, **(given | options))


def pixels(folder: Path) -> dict[str, bytes]:
    split = PackedSplit(folder)
    return {name: split.image(i).tobytes() + split.mask(i).tobytes() for i, name in enumerate(split.ids)}


def test_a_class_is_rare_below_its_share_and_only_if_it_occurs() -> None:
    assert rare_classes((900, 0, 49, 51), 0.05) == [2]
    assert rare_classes((900, 0, 49, 51), 0.051001) == [2, 3]
    assert rare_classes((0, 0), 0.5) == []


def test_repeat_factors_by_hand() -> None:
    # Of 1000 pixels the rare classes have 10 and 40; sqrt(0.04 / 0.01) = 2, sqrt(0.04 / 0.04) = 1.
    weights = repeat_weights(np.array([[0, 0], [5, 0], [0, 9], [1, 1]]), (950, 10, 40), [1, 2], 0.04)
    assert weights.tolist() == pytest.approx([0.0, 1.0, 0.0, 1.0])


def test_a_draw_is_as_even_as_can_be() -> None:
    drawn = even_draw(np.array([0.0, 1.0, 2.0, 1.0]), 8, np.random.default_rng(0))
    assert drawn.tolist() == [1, 1, 2, 2, 2, 2, 3, 3]
    for seed in range(20):
        counts = np.bincount(even_draw(np.array([0.0, 1.0, 2.0, 1.0]), 6, np.random.default_rng(seed)), minlength=4)
        assert counts[0] == 0 and counts[1] in (1, 2) and counts[2] == 3 and counts.sum() == 6
    assert even_draw(np.zeros(3), 5, np.random.default_rng(0)).tolist() == []


def test_extra_samples_say_where_they_come_from(packed: Path, tmp_path: Path) -> None:
    made = make(packed, tmp_path / "extra", oversample=0.5)
    assert made["balance"] == 10 and 10 <= made["copy_paste"] <= 20
    train, extra = PackedSplit(packed / "train"), PackedSplit(packed / "train", tmp_path / "extra")
    origins = {origin.id: origin for origin in read_origins(tmp_path / "extra")}
    assert sorted(origins) == sorted(extra.ids[20:]) and len(origins) == sum(made.values())
    for index in range(20, len(extra)):
        origin = origins[extra.ids[index]]
        image, mask = extra.image(index), extra.mask(index)
        target = train.ids.index(origin.target)
        before_image, before_mask = train.image(target), train.mask(target)
        assert extra.groups[index] == train.groups[target]
        if origin.kind == "balance":
            assert origin.id.startswith(f"{origin.target}+balance-") and (origin.source, origin.boxes) == ([], [])
            assert origin.classes and all((mask == class_id).any() for class_id in origin.classes)
            np.testing.assert_array_equal(image, before_image)
            np.testing.assert_array_equal(mask, before_mask)
            continue
        assert origin.id.startswith(f"{origin.target}+paste-") and origin.target not in origin.source
        untouched = np.ones(SIZE, bool)
        for (top, left, height, width), class_id in zip(origin.boxes, origin.classes, strict=True):
            box = np.s_[top : top + height, left : left + width]
            assert class_id in (CAR, SIGN) and (mask[box] == class_id).any()
            untouched[box] = False
        np.testing.assert_array_equal(mask[untouched], before_mask[untouched])
        np.testing.assert_array_equal(image[untouched], before_image[untouched])
        assert (mask != before_mask).any()
        assert ((mask == IGNORE) == (before_mask == IGNORE)).all()


def test_the_seed_decides_and_neither_processes_nor_a_second_run(packed: Path, tmp_path: Path) -> None:
    for name, options in {"a": {}, "b": {"jobs": 2}, "c": {"seed": 1}}.items():
        make(packed, tmp_path / name, oversample=0.5, **options)
    assert pixels(tmp_path / "a") == pixels(tmp_path / "b") != pixels(tmp_path / "c")
    assert list(read_origins(tmp_path / "a")) == list(read_origins(tmp_path / "b"))
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in (tmp_path / "b").iterdir()}
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_nothing_of_val_and_test_shows_up(packed: Path, tmp_path: Path) -> None:
    """All their pixels are of one colour that no train sample has."""
    make(packed, tmp_path / "extra", copy_paste=5.0, oversample=2.0, mirror=True)
    extra = PackedSplit(tmp_path / "extra")
    assert len(extra) > 60
    assert not any((extra.image(index) == MARKER).all(axis=2).any() for index in range(len(extra)))
    origins = list(read_origins(tmp_path / "extra"))
    assert not {"val", "test"} & {name for origin in origins for name in (origin.target, *origin.source)}


def test_another_split_in_the_same_place_is_looked_at_anew(tmp_path: Path) -> None:
    """A long-lived process runs the stage again and again, on a folder that was replaced meanwhile."""
    for number in (1, 2):
        root = write_packed(tmp_path / "packed", [scene(number, [(CAR, 22, 10, 6, 10)]), scene(5, [])])
        make(root, tmp_path / "extra", copy_paste=0.5)
        (origin,) = read_origins(tmp_path / "extra")
        assert (origin.target, set(origin.source)) == ("s05", {f"s{number:02d}"})


@pytest.mark.parametrize(
    "options", [{"copy_paste": 0.0}, {"rare_below": 0.0001}, {"copy_paste": 0.0, "oversample": 0.02}]
)
def test_nothing_to_make_leaves_no_folder(packed: Path, tmp_path: Path, options: dict[str, float]) -> None:
    assert make(packed, tmp_path / "extra", **options) == {"copy_paste": 0, "balance": 0}
    assert not (tmp_path / "extra").exists()


def test_objects_without_a_place_make_no_samples(tmp_path: Path) -> None:
    """The only other scene is all sky: nowhere to stand."""
    sky = scene(1, [])
    sky.mask[:] = SKY
    packed = write_packed(tmp_path / "packed", [scene(0, [(CAR, 22, 10, 6, 10)]), sky])
    assert make(packed, tmp_path / "extra") == {"copy_paste": 0, "balance": 0}
    assert not (tmp_path / "extra").exists()


def test_samples_of_another_size_are_left_alone(tmp_path: Path) -> None:
    small = scene(1, [])
    small = small._replace(image=small.image[:, :50], mask=small.mask[:, :50])
    packed = write_packed(tmp_path / "packed", [scene(0, [(CAR, 22, 10, 6, 10)]), small, scene(2, [])])
    assert make(packed, tmp_path / "extra", copy_paste=3.0)["copy_paste"] > 0
    assert {origin.target for origin in read_origins(tmp_path / "extra")} == {"s02"}


def test_progress_counts_to_the_end(packed: Path, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    make(packed, tmp_path / "extra", oversample=0.5, on_progress=lambda done, total: said.append((done, total)))
    assert said == [(done, 30) for done in range(1, 31)]


def test_an_origin_is_said_in_a_line() -> None:
    names = ("road", "car", "sign")
    assert Origin("a+balance-000001", "balance", "a", [], [1, 2], []).describe(names) == "a again, for car, sign"
    pasted = Origin("a+paste-000001", "copy_paste", "a", ["b", "c"], [2, 1], [[0, 0, 4, 4], [1, 1, 4, 4]])
    assert pasted.describe(names) == "a with sign of b, car of c"
