from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest.builtin import _brain_volume, brain_blocks, draw_street
from segmill.data.validation import leaks as leaks_module
from segmill.data.validation.leaks import RADIUS, Leaks, find_leaks, image_hash

SIZE = (192, 256)


def street(sequence: int, frame: int = 0) -> np.ndarray:
    return draw_street(SIZE, seed=0, sequence=sequence, frame=frame)[0]


def as_jpeg(image: np.ndarray) -> np.ndarray:
    content = BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=60)
    return np.array(Image.open(content))


def resized(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def cropped(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return image[height // 40 :, width // 30 : -width // 40]


SAME = {
    "jpeg": as_jpeg,
    "smaller": resized(0.9),
    "half": resized(0.5),
    "brighter": lambda image: np.clip(image.astype(int) + 20, 0, 255).astype(np.uint8),
    "contrast": lambda image: np.clip((image.astype(float) - 128) * 0.85 + 128, 0, 255).astype(np.uint8),
    "cropped": cropped,
    "mirrored": lambda image: image[:, ::-1],
    "mirrored jpeg": lambda image: as_jpeg(np.ascontiguousarray(image[:, ::-1])),
    "grey": lambda image: np.rint(image.mean(axis=2, keepdims=True)).astype(np.uint8),
}


def search(
    images: list[np.ndarray], splits: list[str], groups: list[str] | None = None, masks: list[str] | None = None
) -> Leaks:
    ids = [f"s{i}" for i in range(len(images))]
    return find_leaks(
        ids=ids,
        files=[f"images/{name}.png" for name in ids],
        groups=groups or ids,
        splits=splits,
        mask_sha256=masks or ids,
        hashes=[image_hash(image) for image in images],
        read=lambda row: images[row],
    )


def pairs(leaks: Leaks) -> set[tuple[str, str, str]]:
    return {(pair.kind, *pair.ids) for pair in leaks.pairs}


@pytest.mark.parametrize("how", SAME)
def test_an_altered_copy_is_found_across_splits(how: str) -> None:
    originals = [street(s) for s in range(12)]
    copies = [SAME[how](image) for image in originals]
    leaks = search([*originals, *copies], ["train"] * 12 + ["test"] * 12)
    found = {pair.ids for pair in leaks.pairs}
    assert found <= {(f"s{i}", f"s{i + 12}") for i in range(12)}
    assert len(found) >= 11
    assert {pair.mirrored for pair in leaks.pairs} == {"mirrored" in how}
    (issue,) = leaks.issues
    assert (issue.kind, issue.severity, len(issue.files)) == ("near_duplicate", "error", len(found))
    assert "images/s12.png" in issue.files


def test_other_scenes_are_no_leak() -> None:
    images = [street(s) for s in range(60)]
    assert search(images, ["train", "val", "test"] * 20) == Leaks([], [])


def drive(frames: int) -> list[np.ndarray]:
    """Frames of a camera that moves by a pixel or two between them, with noise of their own."""
    scene = draw_street((SIZE[0] + 20, SIZE[1] + 20), seed=0, sequence=3, frame=0)[0].astype(np.float32)
    random = np.random.default_rng(0)
    moved = [scene[i : i + SIZE[0], 2 * i : 2 * i + SIZE[1]] for i in range(frames)]
    return [np.clip(image + random.normal(0, 3, image.shape), 0, 255).astype(np.uint8) for image in moved]


def test_neighbouring_frames_are_a_leak_only_across_splits() -> None:
    frames = drive(4)
    torn = search(frames, ["train", "val", "train", "test"])
    assert {pair.ids[1] for pair in torn.pairs} == {"s1", "s3"}
    assert {(pair.kind, pair.severity, pair.mirrored) for pair in torn.pairs} == {("near_duplicate", "error", False)}
    assert search(frames, ["train"] * 4) == Leaks([], [])


def test_frames_of_one_group_are_not_compared() -> None:
    leaks = search(drive(3), ["train", "val", "val"], groups=["drive"] * 3)
    assert [(pair.kind, pair.ids, pair.likeness) for pair in leaks.pairs] == [("group_leak", ("s0", "s1"), None)]
    (issue,) = leaks.issues
    assert (issue.kind, issue.severity, issue.files) == ("group_leak", "error", ("images/s1.png",))
    assert issue.what == (
        "a group has samples in several splits, for example images/s1.png (val) and images/s0.png (train)"
    )


def test_the_parts_of_a_cut_group_are_a_warning_and_are_compared() -> None:
    leaks = search(drive(3), ["train", "val", "val"], groups=["drive@train", "drive@val", "drive@val"])
    assert [(pair.kind, pair.severity, pair.ids) for pair in leaks.pairs] == [
        ("group_leak", "warning", ("s0", "s1")),
        ("near_duplicate", "error", ("s0", "s1")),
        ("near_duplicate", "error", ("s0", "s2")),
    ]
    assert [(issue.kind, issue.severity, issue.files) for issue in leaks.issues] == [
        ("group_leak", "warning", ("images/s1.png",)),
        ("near_duplicate", "error", ("images/s1.png", "images/s2.png")),
    ]


def test_exact_copies_are_an_error_across_splits_and_a_warning_within() -> None:
    one, two = street(0), street(1)
    leaks = search([one, one, two, two, one], ["train", "train", "val", "train", "test"])
    assert {(p.kind, p.severity, p.ids) for p in leaks.pairs} == {
        ("exact_duplicate", "warning", ("s0", "s1")),
        ("exact_duplicate", "error", ("s3", "s2")),
        ("exact_duplicate", "error", ("s0", "s4")),
    }
    assert [(f.kind, f.severity, f.files) for f in leaks.issues] == [
        ("exact_duplicate", "error", ("images/s2.png", "images/s4.png")),
        ("exact_duplicate", "warning", ("images/s1.png",)),
    ]


def test_one_pixel_less_or_another_shape_is_no_exact_copy() -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    other = image.copy()
    other[4, 4, 1] = 1
    turned = np.zeros((12, 8, 3), np.uint8)
    assert search([image, other, turned], ["train", "val", "test"]) == Leaks([], [])
    assert image_hash(image) == image_hash(image.copy())
    assert len({image_hash(each) for each in (image, other, turned)}) == 3


def test_images_without_structure_are_never_near() -> None:
    """Night frames: all but black, with noise; white sheets with one spot each, at another place."""
    random = np.random.default_rng(0)
    nights = [np.clip(random.normal(4, 2, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(12)]
    sheets = []
    for spot in range(12):
        sheet = np.full((*SIZE, 3), 250, np.uint8)
        cv2.circle(sheet, (20 + 18 * spot, 40 + 9 * spot), 6, (10, 10, 60), -1)
        sheets.append(sheet)
    assert search([*nights, *sheets], ["train", "val", "test"] * 8) == Leaks([], [])


def test_a_mask_that_two_splits_share_proposes_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy cut down so far that the hashes are no longer alike."""
    monkeypatch.setattr(leaks_module, "RADIUS", 4)
    image = street(5)
    far = [street(s) for s in (6, 7)]
    images, splits = [image, *far, cropped(image)], ["train", "train", "train", "val"]
    assert search(images, splits) == Leaks([], [])
    shared = search(images, splits, masks=["m", "a", "b", "m"])
    assert {pair.ids for pair in shared.pairs} == {("s0", "s3")}
    others = search([image, *far, street(8)], splits, masks=["m", "a", "b", "m"])
    assert others == Leaks([], [])


@pytest.mark.slow
def test_slices_of_neighbouring_blocks_are_no_leak_and_a_copied_slice_is() -> None:
    """Slices 4 mm apart are alike in outline; a brain is its own mirror image."""
    image_XYZ, _ = _brain_volume()
    blocks = [block for block in brain_blocks() if 4 <= int(block.name[-2:]) <= 11]
    rows = [(block, z) for block in blocks for z in range(block.start, block.stop)]
    images = [np.ascontiguousarray(image_XYZ[:, :, z].T[::-1, :, None]) for _, z in rows]
    groups = [block.name for block, _ in rows]
    assert search(images, [block.split for block, _ in rows], groups) == Leaks([], [])
    one = [block.split for block, _ in rows].index("test")
    copy = as_jpeg(images[one][4:, 3:-2, 0])[:, :, None]
    leaks = search([*images, copy], [*(block.split for block, _ in rows), "train"], [*groups, "foreign"])
    assert (f"s{len(images)}", f"s{one}") in {pair.ids for pair in leaks.pairs}
    assert {pair.groups for pair in leaks.pairs} == {("foreign", groups[one])}


def test_likeness_is_about_fine_structure() -> None:
    def likeness(first: np.ndarray, second: np.ndarray) -> float:
        return leaks_module._agreement(leaks_module._seen(first), leaks_module._seen(second))

    image = street(2)
    assert likeness(image, image) == pytest.approx(1.0, abs=1e-3)
    assert likeness(image, cropped(image)) > 0.85
    assert likeness(image, image[:, ::-1]) < 0.5
    assert likeness(image, street(8)) < 0.4
    assert likeness(image, np.full_like(image, 90)) == 0.0


def test_what_is_not_compared_any_more_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks_module, "COMPARED", 3)
    images = [street(s) for s in range(6)]
    leaks = search([*images, *(as_jpeg(image) for image in images)], ["train"] * 6 + ["val"] * 6)
    assert [(issue.kind, issue.severity, len(issue.files)) for issue in leaks.issues] == [
        ("near_duplicate", "error", 3),
        ("near_duplicate", "warning", 3),
    ]


def slow_neighbours(queries: np.ndarray, index: np.ndarray) -> set[tuple[int, int, int]]:
    distance = np.bitwise_count(queries[:, None] ^ index[None])
    return {(int(q), int(i), int(distance[q, i])) for q, i in zip(*np.nonzero(distance <= RADIUS), strict=True)}


def test_the_search_finds_every_neighbour_within_the_radius() -> None:
    random = np.random.default_rng(1)
    index = random.integers(0, 2**64, 400, dtype=np.uint64)
    queries = index[:300].copy()
    for number, query in enumerate(queries):  # 0 to 18 bits turned, at random places
        bits = random.choice(64, number % 19, replace=False).astype(np.uint64)
        queries[number] = query ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    found = set(zip(*(column.tolist() for column in leaks_module._neighbours(queries, index)), strict=True))
    assert found == slow_neighbours(queries, index)
    assert sum(q == i for q, i, _ in found) == sum(number % 19 <= RADIUS for number in range(300))


@pytest.mark.slow
@pytest.mark.long
def test_a_hundred_thousand_hashes_are_searched_in_seconds_and_bounded_memory() -> None:
    """Of the worst kind: 1,000 sequences of 100 frames, whose hashes differ in a few bits, dealt at random."""
    import tracemalloc

    random = np.random.default_rng(0)
    scenes = random.integers(0, 2**64, 1000, dtype=np.uint64)
    looks = np.repeat(scenes, 100)
    for _ in range(4):
        looks ^= np.uint64(1) << random.integers(0, 64, len(looks), dtype=np.uint64)
    train = random.random(len(looks)) < 0.7
    began = time.process_time()
    tracemalloc.start()
    q, i, distance = leaks_module._neighbours(np.unique(looks[~train]), np.unique(looks[train]))
    peak = tracemalloc.get_traced_memory()[1]
    assert time.process_time() - began < 60
    assert peak < 400e6
    assert len(np.unique(q)) > 29_000 and distance.max() <= RADIUS and len(i) == len(q)
