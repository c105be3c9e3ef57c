from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from segmill.data.ingest.formats import nifti, open_layout
from segmill.errors import InputError


@pytest.fixture
def volume(tmp_path: Path):
    """Write a volume whose axes run to the right, the front and up, unless ``affine`` says else."""

    def write(name: str, voxels_XYZ: np.ndarray, spacing=(1.0, 1.0, 3.0), affine=None) -> Path:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        where = np.diag([*spacing, 1.0]) if affine is None else affine
        nibabel.save(nibabel.Nifti1Image(voxels_XYZ, where), path)
        return path

    return write


# X = 2 (right), Y = 3 (front), Z = 2 (up): values 0..11; the window's percentiles of 12 values are 0.055 and 10.945.
VOXELS = np.arange(12, dtype=np.int16).reshape(2, 3, 2)
LABELS = (VOXELS % 3).astype(np.uint8)


def decathlon(volume, tmp_path: Path, **more: object) -> Path:
    for name in ("liver_1", "liver_2"):
        volume(f"imagesTr/{name}.nii.gz", VOXELS)
        volume(f"labelsTr/{name}.nii.gz", LABELS)
    content = {"name": "Liver", "licence": "CC-BY-SA 4.0", "labels": {"0": "background", "1": "liver", "2": "cancer"}}
    (tmp_path / "set/dataset.json").write_text(json.dumps(content | more))
    return tmp_path / "set"


def test_slices_stand_upright_with_names_of_the_decathlon(volume, take, tmp_path: Path) -> None:
    (tmp_path / "set/imagesTs").mkdir(parents=True)
    found = open_layout(decathlon(volume, tmp_path))
    taken = take(found)
    assert (found.layout, found.count, taken.issues) == ("nifti", 4, {})
    # z = 0: rows are y from the front (2) to the back (0), columns x. Voxel (x, y, z) = 6x + 2y + z.
    assert taken.mask("liver_1_z000") == [[4 % 3, 10 % 3], [2 % 3, 8 % 3], [0, 6 % 3]]
    low, high = np.percentile(np.arange(12), nifti.WINDOW_PERCENT)
    grey = [[round(min(max((v - low) * 255 / (high - low), 0), 255)) for v in row] for row in [[4, 10], [2, 8], [0, 6]]]
    assert taken.image("liver_1_z000")[:, :, 0].tolist() == grey
    assert taken.places()["liver_2_z001"] == ("liver_2", None)
    assert found.info.class_names == ("background", "liver", "cancer")
    assert found.info.license == "CC-BY-SA 4.0"
    assert found.notes == ["imagesTs/ is left out: it has no labels"]


def test_axes_that_run_another_way_are_turned_by_the_affine(volume, take, tmp_path: Path) -> None:
    decathlon(volume, tmp_path)
    upright = take(open_layout(tmp_path / "set"))
    affine = np.array([[0, 0, -1, 1], [0, -1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 1.0]])  # stored as z, -y, -x
    for kind, voxels in (("imagesTr", VOXELS), ("labelsTr", LABELS)):
        for name in ("liver_1", "liver_2"):
            volume(f"{kind}/{name}.nii.gz", voxels[::-1, ::-1].transpose(2, 1, 0), affine=affine)
    turned = take(open_layout(tmp_path / "set"))
    assert sorted(turned.samples) == sorted(upright.samples)
    for sample_id in upright.samples:
        assert turned.mask(sample_id) == upright.mask(sample_id)
        np.testing.assert_array_equal(turned.image(sample_id), upright.image(sample_id))


def test_nnunet_names_channels_and_ignore(volume, take, tmp_path: Path) -> None:
    for channel in range(4):
        volume(f"imagesTr/case_{channel:04d}.nii", VOXELS + channel)
    volume("labelsTr/case.nii", (LABELS * 2).astype(np.uint8))
    labels = {"background": 0, "tumour": 2, "ignore": 4}
    (tmp_path / "set/dataset.json").write_text(json.dumps({"labels": labels}))
    found = open_layout(tmp_path / "set")
    taken = take(found)
    assert taken.image("case_z000").shape == (3, 2, 3)
    assert taken.mask("case_z000") == [[1, 1], [255, 255], [0, 0]]
    assert found.info.class_names == ("background", "tumour")
    assert found.notes == ["volumes have 4 channels: the first three are red, green and blue"]


def test_pairs_by_name_get_their_classes_from_the_values(volume, take, tmp_path: Path) -> None:
    volume("sub-07_ses-1_T1w.nii.gz", VOXELS.astype(np.float32), spacing=(1, 5, 1))
    volume("sub-07_ses-1_T1w_seg.nii.gz", LABELS.astype(np.float32), spacing=(1, 5, 1))
    found = open_layout(tmp_path / "set")
    taken = take(found)
    assert found.count == 3  # across the coarsest axis, from the back to the front
    assert taken.mask("sub-07_ses-1_T1w_y001") == [[3 % 3, 9 % 3], [2 % 3, 8 % 3]]
    assert taken.places()["sub-07_ses-1_T1w_y000"] == ("sub-07", None)
    assert found.info.class_names == ("class_0", "class_1", "class_2")


def test_volumes_that_do_not_fit_are_found(volume, take, tmp_path: Path) -> None:
    root = decathlon(volume, tmp_path)
    volume("labelsTr/liver_1.nii.gz", LABELS[:, :2])
    volume("labelsTr/liver_2.nii.gz", LABELS, spacing=(2, 1, 3))
    volume("imagesTr/liver_3.nii.gz", VOXELS)
    said = {file: issue.what for file, issue in take(open_layout(root)).issues.items()}
    assert said == {
        "imagesTr/liver_3.nii.gz": "it has no label volume in labelsTr/",
        "labelsTr/liver_1.nii.gz": "the label is (2, 2, 2) voxels, imagesTr/liver_1.nii.gz (2, 3, 2)",
        "labelsTr/liver_2.nii.gz": "by its affine the label is elsewhere than imagesTr/liver_2.nii.gz",
    }


def test_labels_that_have_no_name_or_are_fractions_are_found(volume, take, tmp_path: Path) -> None:
    root = decathlon(volume, tmp_path)
    volume("labelsTr/liver_1.nii.gz", (LABELS + 1).astype(np.uint8))
    volume("labelsTr/liver_2.nii.gz", LABELS + np.float32(0.5))
    taken = take(open_layout(root))
    assert taken.samples == {}
    assert "values that are no class: 3" in taken.issues["labelsTr/liver_1.nii.gz"].what
    assert taken.issues["labelsTr/liver_2.nii.gz"].what == "its labels are not whole numbers"


def test_a_header_bomb_and_broken_volumes_are_found_not_decoded(volume, take, tmp_path: Path) -> None:
    root = decathlon(volume, tmp_path)
    plain = volume("bomb.nii", VOXELS)
    header = bytearray(plain.read_bytes())
    plain.unlink()
    struct.pack_into("<4h", header, 40, 3, 30_000, 30_000, 30_000)
    (root / "imagesTr/liver_1.nii.gz").write_bytes(gzip.compress(bytes(header)))
    noise = np.random.default_rng(0).integers(0, 2**15, (30, 30, 20)).astype(np.int16)
    path = volume("imagesTr/liver_2.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:20_000])
    volume("labelsTr/liver_2.nii.gz", noise % 2)
    for number, content in ((3, b""), (4, b"no volume"), (5, gzip.compress(b"x" * 400))):
        (root / f"imagesTr/liver_{number}.nii.gz").write_bytes(content)
        volume(f"labelsTr/liver_{number}.nii.gz", LABELS)
    taken = take(open_layout(root))
    said = {file: issue.what for file, issue in taken.issues.items()}
    assert taken.samples == {}
    assert sorted(said) == [f"imagesTr/liver_{n}.nii.gz" for n in range(1, 6)]
    assert "its header claims 51498413 MiB" in said["imagesTr/liver_1.nii.gz"]
    assert "can't be decoded" in said["imagesTr/liver_2.nii.gz"]
    assert len(taken.found) == 5  # not once for every slice
    assert all("can't be read" in said[f"imagesTr/liver_{n}.nii.gz"] for n in (3, 4, 5))


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"labels": {"a": "b"}}', b'{"labels": {"0": "a", "1": [1, 2]}}'])
def test_a_dataset_json_that_says_nothing_is_refused(content: bytes, volume, tmp_path: Path) -> None:
    root = decathlon(volume, tmp_path)
    (root / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_layout(root)


def test_damaged_volumes_are_read_or_refused(volume, take, tmp_path: Path) -> None:
    root = decathlon(volume, tmp_path)
    for name in ("imagesTr/liver_1.nii", "labelsTr/liver_1.nii"):
        volume(name, LABELS)
        (root / f"{name}.gz").unlink()
    random = np.random.default_rng(2)
    for name in ("imagesTr/liver_1.nii", "labelsTr/liver_1.nii", "imagesTr/liver_2.nii.gz"):
        whole = (root / name).read_bytes()
        for _ in range(8):
            damaged = np.frombuffer(whole, np.uint8).copy()
            places = random.integers(0, min(360, len(whole)), 3)
            damaged[places] ^= random.integers(1, 256, 3).astype(np.uint8)
            (root / name).write_bytes(damaged[: random.integers(len(whole) // 2, 2 * len(whole))].tobytes())
            taken = take(open_layout(root))
            assert len(taken.samples) + len(taken.issues) >= 1
        (root / name).write_bytes(whole)
