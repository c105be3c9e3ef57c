from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from segmill.data.ingest.builtin import brain_blocks, draw_street, write_brain, write_street
from segmill.data.schema.manifest import read_dataset_info
from segmill.data.schema.samples import list_samples
from segmill.data.storage.images import read_image, read_mask
from segmill.errors import InputError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_blocks_of_different_splits_lie_at_least_3_mm_apart() -> None:
    blocks = brain_blocks()
    for lower, upper in pairwise(blocks):
        assert lower.split != upper.split
        unused = upper.start - lower.stop  # lower.stop is the first slice not used
        assert unused >= 3
    assert (blocks[0].start, blocks[-1].stop) == (3, 151)


def test_every_split_sees_the_whole_height() -> None:
    """In each quarter of the brain's height there is a slice of every split."""
    for quarter in range(4):
        low, high = 3 + quarter * 37, 3 + (quarter + 1) * 37
        there = {block.split for block in brain_blocks() if block.start < high and block.stop > low}
        assert there == {"train", "val", "test"}


def test_the_brain_set(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    assert write_brain(tmp_path / "base") == 35 + 12 + 18
    base = contents(tmp_path / "base")
    info = read_dataset_info(tmp_path / "base")
    assert info.class_names == ("background", "csf", "grey_matter", "white_matter")
    entries, issues = list_samples(tmp_path / "base")
    assert not issues
    assert entries[0].id == "brain_b00_z003"
    groups = {group for members in info.splits.values() for group in members}
    assert {info.group_of(entry.id) for entry in entries} == groups
    total, pixels = np.zeros(4), np.zeros(4)
    for entry in entries:
        image, mask = read_image(entry.image.read(tmp_path / "base")), read_mask(entry.mask.read(tmp_path / "base"))
        assert image.shape == (192, 160, 1)
        assert mask.shape == (192, 160)
        assert not mask[[0, -1]].any()  # the crop cuts nothing off
        assert not mask[:, [0, -1]].any()
        assert ((mask == 0) == (image[:, :, 0] == 0)).all()
        total += np.bincount(mask.ravel(), weights=image.ravel(), minlength=4)
        pixels += np.bincount(mask.ravel(), minlength=4)
    assert (np.diff(total / pixels) > 30).all()  # T1: CSF is dark, grey matter greyer, white matter bright

    assert write_brain(tmp_path / "more", every=1) == 70 + 12 + 18
    more = contents(tmp_path / "more")
    assert base.items() < more.items()  # the rest is added, nothing is changed
    added = {Path(name).stem.rsplit("_", 1)[0] for name in more.keys() - base.keys()}
    assert added == set(info.splits["train"])


def test_the_brain_refuses_a_step_below_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every is 0"):
        write_brain(tmp_path, every=0)


def test_a_street_frame_depends_on_its_seed_and_number_only(tmp_path: Path) -> None:
    write_street(tmp_path / "few", count=12, size=(64, 96), seed=1)
    write_street(tmp_path / "many", count=31, size=(64, 96), seed=1)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    del few["dataset.yaml"]
    assert few.items() < many.items()
    write_street(tmp_path / "rest", count=19, size=(64, 96), seed=1, first=12)
    rest = contents(tmp_path / "rest")
    assert read_dataset_info(tmp_path / "rest").splits["val"] == ("street_s0001",)
    assert set(read_dataset_info(tmp_path / "rest").splits["train"]) == {"street_s0003"}
    del rest["dataset.yaml"]
    assert many.items() >= rest.items() and len(few) + len(rest) == 2 * 31
    first, other = (draw_street((64, 96), seed=seed, sequence=0, frame=0)[0] for seed in (1, 2))
    assert (first != other).mean() > 0.5
    path = tmp_path / "few" / "images" / "street_s0000_f00.png"
    np.testing.assert_array_equal(read_image(path), first)  # RGB on the way out and in


def test_street_scenes_hold_all_classes_and_make_all_splits(tmp_path: Path) -> None:
    write_street(tmp_path, count=30, size=(64, 64))
    info = read_dataset_info(tmp_path)
    assert info.splits == {"train": ("street_s0000",), "val": ("street_s0001",), "test": ("street_s0002",)}
    entries, issues = list_samples(tmp_path)
    assert (len(entries), issues) == (30, [])
    pixels = sum(np.bincount(read_mask(entry.mask.read(tmp_path)).ravel(), minlength=256) for entry in entries)
    assert set(np.flatnonzero(pixels)) == {0, 1, 2, 3, 4, 255}


def test_frames_of_a_sequence_are_alike_and_sequences_are_not() -> None:
    size = (64, 64)
    mask, next_mask = (draw_street(size, seed=0, sequence=0, frame=frame)[1] for frame in (0, 1))
    other = draw_street(size, seed=0, sequence=1, frame=0)[1]
    assert 0 < (mask != next_mask).mean() < 0.1 < (mask != other).mean()


def test_street_refuses_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="count is 0"):
        write_street(tmp_path, count=0)
    with pytest.raises(InputError, match=r"size \(64, 16\)"):
        write_street(tmp_path, count=1, size=(64, 16))
