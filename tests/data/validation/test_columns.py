"""Columns of samples.csv in the manifest, and slices by any column of it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.schema.manifest import manifest_schema, read_dataset_info, read_manifest
from segmill.data.schema.slices import MOST_VALUES, NOT_GIVEN, slice_values
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InputError

SHARES = SplitShares(0.25, 0.25, 0)


@pytest.fixture
def raw(tmp_path: Path, street: Path) -> Path:
    shutil.copytree(street, tmp_path / "raw")
    return tmp_path / "raw"


def manifest_of(raw: Path, name: str = "manifest.parquet") -> Path:
    path = raw.parent / name
    validate_dataset(raw, path, shares=SHARES, jobs=1)
    return path


def write_samples(raw: Path) -> None:
    """A camera for every sample but those of the last scene, and the columns ``number``, ``height`` and ``group``."""
    ids = sorted(path.stem for path in (raw / "images").iterdir())
    lines = [f"{name},{'' if 's0007' in name else 'ab'[n % 2]},{n},9,g" for n, name in enumerate(ids)]
    (raw / "samples.csv").write_text("\n".join(["id,camera,number,height,group", *lines]) + "\n")


def test_without_samples_csv_the_manifest_has_its_own_columns_alone(raw: Path) -> None:
    table = read_manifest(manifest_of(raw))
    assert table.column_names == manifest_schema(read_dataset_info(raw)).names


def test_columns_come_into_the_manifest_and_no_packed_byte_changes(raw: Path) -> None:
    before, packed = manifest_of(raw, "before.parquet"), raw.parent / "packed"
    pack(raw, before, packed)
    write_samples(raw)
    after = manifest_of(raw)
    table = read_manifest(after)
    assert table.column_names == [*read_manifest(before).column_names, "camera", "number"], "its own columns are kept"
    cameras = dict(zip(table["id"].to_pylist(), table["camera"].to_pylist(), strict=True))
    assert set(cameras.values()) == {"a", "b", None}
    assert {camera for name, camera in cameras.items() if "s0007" in name} == {None}
    assert table["height"].unique().to_pylist() == [64]
    pack(raw, after, raw.parent / "again")
    files = [
        {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")}
        for folder in (packed, raw.parent / "again")
    ]
    assert files[0] == files[1]


def test_slices_follow_the_order_of_the_packed_split(raw: Path) -> None:
    write_samples(raw)
    manifest = manifest_of(raw)
    pack(raw, manifest, raw.parent / "packed")
    test = PackedSplit(raw.parent / "packed" / "test")
    found = slice_values(manifest, test.ids, ["camera", "height"])
    rows = {row["id"]: row for row in read_manifest(manifest).to_pylist()}
    assert found == {
        "camera": [rows[name]["camera"] or NOT_GIVEN for name in test.ids],
        "height": ["64"] * len(test),
    }
    assert slice_values(manifest, test.ids, []) == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("camra", r"'camra', which is no column of the manifest; did you mean 'camera'\?; name another .*camera"),
        ("number", rf"'number', which has 80 values here; at most {MOST_VALUES} make slices; .* add a column to"),
        ("class_pixels", "'class_pixels', whose cells are lists"),
    ],
)
def test_what_makes_no_slices_is_refused_with_what_there_is(raw: Path, name: str, said: str) -> None:
    write_samples(raw)
    manifest = manifest_of(raw)
    with pytest.raises(InputError, match=said):
        slice_values(manifest, read_manifest(manifest)["id"].to_pylist(), [name])


def test_a_sample_that_the_manifest_lacks(raw: Path) -> None:
    with pytest.raises(InputError, match="has no sample 'gone' of the packed split"):
        slice_values(manifest_of(raw), ["gone"], ["height"])
