from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.checks import PRINTED, BadData, validate_dataset
from segmill.data.manifest import manifest_info, read_manifest
from segmill.errors import InputError

SHARES = {"val": 0.2, "test": 0.2, "seed": 0}


def test_a_good_set_becomes_a_manifest(tiny_set: Path, tmp_path: Path) -> None:
    mask = np.full((4, 6), 255, np.uint8)
    mask[0, 0] = 1
    Image.fromarray(mask).save(tiny_set / "masks" / "c.png")
    summary = validate_dataset(tiny_set, tmp_path / "m.parquet", **SHARES)
    assert summary.samples == {"train": 1, "val": 1, "test": 1}
    assert summary.class_pixels == {"ground": 24, "thing": 25}
    assert summary.ignored_pixels == 23
    assert summary.warnings == ["class 'ground' has no pixel in test"]
    table = read_manifest(tmp_path / "m.parquet")
    row = table.to_pylist()[2]
    assert (row["id"], row["image"], row["mask"]) == ("c", "images/c.png", "masks/c.png")
    assert (row["height"], row["width"], row["channels"], row["group"], row["split"]) == (
        4,
        6,
        3,
        "c",
        "test",
    )
    assert (row["class_pixels"], row["ignored_pixels"], row["findings"]) == ([0, 1], 23, [])
    assert len(row["image_sha256"]) == 64
    assert manifest_info(table).class_names == ("ground", "thing")


def test_all_bad_files_are_said_at_once(tiny_set: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    empty = np.zeros((32, 32), np.uint8)
    for name in ("truncated", "small", "strange", "lonely", "fine"):
        Image.fromarray(noise).save(tiny_set / "images" / f"{name}.png")
        Image.fromarray(empty).save(tiny_set / "masks" / f"{name}.png")
    path = tiny_set / "images" / "truncated.png"
    path.write_bytes(path.read_bytes()[:900])
    Image.fromarray(empty[:, :30]).save(tiny_set / "masks" / "small.png")
    Image.fromarray(empty + np.eye(32, dtype=np.uint8) * 9).save(tiny_set / "masks" / "strange.png")
    (tiny_set / "masks" / "lonely.png").unlink()
    Image.fromarray(empty).save(tiny_set / "masks" / "orphan.png")
    with pytest.raises(BadData) as caught:
        validate_dataset(tiny_set, tmp_path / "m.parquet", **SHARES)
    said = {finding.file: str(finding) for finding in caught.value.findings}
    assert list(said) == [
        "images/lonely.png",
        "images/truncated.png",
        "masks/orphan.png",
        "masks/small.png",
        "masks/strange.png",
    ]
    assert "the mask is 32 x 30 px (height x width), the image 32 x 32" in said["masks/small.png"]
    assert "class ids [9] outside 0..1 and ignore id 255" in said["masks/strange.png"]
    assert "can't be decoded" in said["images/truncated.png"]
    assert str(caught.value).splitlines()[0] == f"5 problems in {tiny_set}:"
    assert len(str(caught.value).splitlines()) == 6
    assert not (tmp_path / "m.parquet").exists()


def test_a_long_list_is_cut_in_print_only(tiny_set: Path, tmp_path: Path) -> None:
    for number in range(PRINTED + 7):
        (tiny_set / "masks" / f"orphan{number:03d}.png").touch()
    with pytest.raises(BadData) as caught:
        validate_dataset(tiny_set, tmp_path / "m.parquet", **SHARES)
    assert len(caught.value.findings) == PRINTED + 7
    assert str(caught.value).endswith("and 7 more")


def test_an_empty_set_and_an_empty_split_are_refused(write_set, tmp_path: Path) -> None:
    raw_dir = write_set({})
    with pytest.raises(InputError, match="holds no samples"):
        validate_dataset(raw_dir, tmp_path / "m.parquet", **SHARES)
    sample = np.zeros((4, 4), np.uint8)
    write_set({"a": (sample, sample), "b": (sample, sample)}, splits={"train": ("a",), "test": ("b",)})
    with pytest.raises(InputError, match=r"no group falls into val \(2 groups in all\)"):
        validate_dataset(raw_dir, tmp_path / "m.parquet", **SHARES)


def test_an_id_outside_the_group_rule_is_a_finding(write_set, tmp_path: Path) -> None:
    sample = np.zeros((4, 4), np.uint8)
    raw_dir = write_set({"a_z1": (sample, sample), "b": (sample, sample)}, group=r"^(?P<group>.+)_z\d+$")
    with pytest.raises(BadData, match=r"images/b\.png: the group rule .* does not match its id 'b'"):
        validate_dataset(raw_dir, tmp_path / "m.parquet", **SHARES)


def test_copies_across_splits_and_ignored_masks_are_warned_of(tiny_set: Path, tmp_path: Path) -> None:
    (tiny_set / "images" / "c.png").write_bytes((tiny_set / "images" / "a.png").read_bytes())
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(tiny_set / "masks" / "b.png")
    summary = validate_dataset(tiny_set, tmp_path / "m.parquet", **SHARES)
    assert "c: the image is a copy of a, across test and train" in summary.warnings
    assert "b: every pixel of the mask is ignored" in summary.warnings


def test_the_manifest_does_not_depend_on_the_number_of_processes(tiny_set: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        validate_dataset(tiny_set, tmp_path / f"{jobs}.parquet", **SHARES, jobs=jobs)
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
