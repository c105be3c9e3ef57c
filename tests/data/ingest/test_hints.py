"""What a set's images and names suggest: the drawn streets and the atlas, and made-up photos."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest.builtin import write_brain
from segmill.data.ingest.hints import Look, doubtful_groups, look_at_images
from segmill.data.schema.manifest import read_dataset_info


def test_frames_of_recordings_are_no_groups_of_their_own(street: Path) -> None:
    info = read_dataset_info(street)
    assert doubtful_groups(street, info) is None, "the sequences are the groups"
    said = doubtful_groups(street, replace(info, group=None))
    assert said is not None and said.startswith("80 of 80 samples are groups of their own")
    assert "(street_s0000_f00, street_s0000_f01, ...)" in said and "`segmill init --group`" in said


def test_slices_of_a_stack_are_no_groups_of_their_own(tmp_path: Path) -> None:
    write_brain(tmp_path)
    info = read_dataset_info(tmp_path)
    assert doubtful_groups(tmp_path, info) is None
    assert "slices of one stack" in str(doubtful_groups(tmp_path, replace(info, group=None)))


@pytest.fixture
def photos(tmp_path: Path, street: Path) -> Path:
    """Thirty numbered photos of as many scenes."""
    shutil.copytree(street, tmp_path / "photos")
    for kind in ("images", "masks"):
        shutil.rmtree(tmp_path / "photos" / kind)
        (tmp_path / "photos" / kind).mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        scene = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 64))
        scene.save(tmp_path / "photos" / "images" / f"photo{number:02d}.jpg")
        Image.new("L", (96, 64)).save(tmp_path / "photos" / "masks" / f"photo{number:02d}.png")
    return tmp_path / "photos"


def test_numbered_photos_of_different_scenes_may_be_groups_of_their_own(photos: Path) -> None:
    assert doubtful_groups(photos, replace(read_dataset_info(photos), group=None)) is None


def test_few_numbered_samples_are_no_series(photos: Path) -> None:
    first = Image.open(photos / "images" / "photo00.jpg")
    for path in (photos / "images").iterdir():
        first.save(path)
    info = replace(read_dataset_info(photos), group=None)
    for number in range(4, 30):
        for kind, suffix in (("images", ".jpg"), ("masks", ".png")):
            (photos / kind / f"photo{number:02d}{suffix}").unlink()
    assert doubtful_groups(photos, info) is None


def test_colours_and_formats_are_seen(photos: Path, tmp_path: Path) -> None:
    assert look_at_images(photos) == Look(coloured=1.0, jpeg=1.0)
    for path in (photos / "images").iterdir():
        Image.open(path).convert("L").convert("RGB").save(path.with_suffix(".png"))
        path.unlink()
    assert look_at_images(photos) == Look(coloured=0.0, jpeg=0.0), "three equal channels are grey"
