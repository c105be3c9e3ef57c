"""Calibration groups are packed apart from every split; without any, packs are what they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from segmill.data.ingest.builtin import write_street
from segmill.data.packing.calibration import read_values
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InputError

APART = ["street_s0000", "street_s0002"]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a set of six sequences and its manifest."""
    folder = tmp_path_factory.mktemp("street")
    write_street(folder / "raw", count=60, size=(32, 40), jobs=1)
    validate_dataset(folder / "raw", folder / "manifest.parquet", shares=SplitShares(0.2, 0.2, 0), jobs=1)
    return folder / "raw", folder / "manifest.parquet"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_calibration_groups_are_in_no_split(street: tuple[Path, Path], tmp_path: Path) -> None:
    info = pack(*street, tmp_path / "packed", calibration=APART, jobs=1)
    splits = {name: PackedSplit(tmp_path / "packed" / name) for name in ("train", "val", "test", "calibration")}
    assert set(splits["calibration"].groups) == set(APART)
    assert all(not set(splits[name].groups) & set(APART) for name in ("train", "val", "test"))
    assert sum(map(len, splits.values())) == 60 and info.samples["calibration"] == 20
    assert read_pack(tmp_path / "packed").samples == info.samples
    assert read_values(tmp_path / "packed") == {}


def test_without_calibration_groups_nothing_changes(street: tuple[Path, Path], tmp_path: Path) -> None:
    pack(*street, tmp_path / "a", jobs=1)
    pack(*street, tmp_path / "b", calibration=[], by="group", jobs=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not (tmp_path / "a" / "calibration").exists()


def test_values_of_a_column_are_kept_and_an_unknown_one_is_refused(street: tuple[Path, Path], tmp_path: Path) -> None:
    pack(*street, tmp_path / "packed", calibration=APART, by="group", jobs=1)
    samples = PackedSplit(tmp_path / "packed" / "calibration")
    assert read_values(tmp_path / "packed") == dict(zip(samples.ids, samples.groups, strict=True))
    with pytest.raises(InputError, match=r"anomaly\.by names 'camera', which is no column of the manifest"):
        pack(*street, tmp_path / "other", calibration=APART, by="camera", jobs=1)
