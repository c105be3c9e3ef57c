from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.checks import validate_dataset
from segmill.data.packing import PackedSplit, Sample, SplitWriter, pack, read_pack
from segmill.data.samples import write_street
from segmill.errors import InputError


def packed(raw_dir: Path, out_dir: Path, **options: object) -> Path:
    manifest = out_dir.with_suffix(".parquet")
    validate_dataset(raw_dir, manifest, val=0.2, test=0.2, seed=0)
    pack(raw_dir, manifest, out_dir, **{"size": None, **options})
    return out_dir


def test_packed_pixels_are_the_files_pixels(tiny_set: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), rng.integers(0, 2, (4, 6), dtype=np.uint8)
    Image.fromarray(image).save(tiny_set / "images" / "b.png")
    Image.fromarray(mask).save(tiny_set / "masks" / "b.png")
    val = PackedSplit(packed(tiny_set, tmp_path / "packed") / "val")
    assert (len(val), val.ids, val.groups, val.shape(0)) == (1, ["b"], ["b"], (4, 6))
    np.testing.assert_array_equal(val.image(0), image)
    np.testing.assert_array_equal(val.mask(0), mask)
    with pytest.raises(ValueError, match="read-only"):
        val.image(0)[0, 0, 0] = 1


def test_only_train_is_resized(tiny_set: Path, tmp_path: Path) -> None:
    steps = np.array([[0, 10], [20, 30]], np.uint8)
    Image.fromarray(np.repeat(steps, 2, axis=1)).save(tiny_set / "images" / "a.png")  # grey, 2 x 4
    Image.fromarray(np.array([[0, 0, 1, 1], [1, 1, 1, 1]], np.uint8)).save(tiny_set / "masks" / "a.png")
    out = packed(tiny_set, tmp_path / "packed", size=(1, 2))
    train, val = PackedSplit(out / "train"), PackedSplit(out / "val")
    assert train.image(0).tolist() == [[[10] * 3, [20] * 3]]  # means of 0 0 20 20 and 10 10 30 30
    assert train.shape(0) == (1, 2)
    assert val.shape(0) == (4, 6)
    info = read_pack(out)
    assert info.size == (1, 2)
    np.testing.assert_allclose(info.mean, [15 / 255] * 3, rtol=1e-12)
    np.testing.assert_allclose(info.std, [5 / 255] * 3, rtol=1e-12)


def test_masks_are_resized_to_ids_that_were_there(tmp_path: Path) -> None:
    write_street(tmp_path / "raw", count=30, size=(64, 64))
    out = packed(tmp_path / "raw", tmp_path / "packed", size=(96, 32))
    train = PackedSplit(out / "train")
    assert {train.shape(i) for i in range(len(train))} == {(96, 32)}
    assert set(np.unique([train.mask(i) for i in range(len(train))])) <= {0, 1, 2, 3, 4, 255}


def test_pack_json_says_what_is_there(tiny_set: Path, tmp_path: Path) -> None:
    info = read_pack(packed(tiny_set, tmp_path / "packed"))
    assert (info.name, info.num_classes, info.class_names, info.colors) == (
        "tiny", 2, ("ground", "thing"), ("#000000", "#ff0000")
    )  # fmt: skip
    assert (info.ignore_id, info.size, info.channels) == (255, None, 3)
    assert info.class_pixels == (12, 12)
    assert info.samples == {"train": 1, "val": 1, "test": 1}
    np.testing.assert_allclose(info.mean, [10 / 255] * 3)
    np.testing.assert_allclose(info.std, [0] * 3, atol=1e-9)


def test_processes_change_no_byte(tmp_path: Path) -> None:
    write_street(tmp_path / "raw", count=30, size=(32, 32))
    one, two = (packed(tmp_path / "raw", tmp_path / f"packed{jobs}", jobs=jobs) for jobs in (1, 2))
    for path in sorted(one.rglob("*.*")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    write_street(tmp_path / "raw", count=60, size=(256, 256))
    manifest = tmp_path / "m.parquet"
    validate_dataset(tmp_path / "raw", manifest, val=0.2, test=0.2, seed=0)
    tracemalloc.start()
    pack(tmp_path / "raw", manifest, tmp_path / "packed", size=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = sum(path.stat().st_size for path in (tmp_path / "packed").rglob("*.bin"))
    assert written == 60 * 256 * 256 * 4
    assert peak < written / 4


def test_files_that_changed_since_validation_are_refused(tiny_set: Path, tmp_path: Path) -> None:
    out = packed(tiny_set, tmp_path / "packed")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tiny_set / "images" / "b.png")
    with pytest.raises(InputError, match=r"b\.png changed since validation"):
        pack(tiny_set, tmp_path / "packed.parquet", out, size=None)
    (tiny_set / "images" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png is gone since validation"):
        pack(tiny_set, tmp_path / "packed.parquet", out, size=None)


def ragged(folder: Path, names: str, start: int) -> Path:
    with SplitWriter(folder) as writer:
        for value, name in enumerate(names, start):
            image = np.full((2, value, 3), value, np.uint8)
            writer.add(Sample(name, f"g{name}", image, image[:, :, 0]))
    return folder


def test_ragged_samples_and_further_folders(tmp_path: Path) -> None:
    folders = [
        ragged(tmp_path / "one", "ab", 1),
        ragged(tmp_path / "none", "", 0),
        ragged(tmp_path / "two", "c", 3),
    ]
    split = PackedSplit(*folders)
    assert (split.ids, split.groups) == (["a", "b", "c"], ["ga", "gb", "gc"])
    for index, value in enumerate((1, 2, 3)):
        assert split.image(index).shape == (2, value, 3)
        assert (split.image(index) == value).all()
        assert (split.mask(index) == value).all()
    again = pickle.dumps(split)
    assert len(again) < 2000
    np.testing.assert_array_equal(pickle.loads(again).image(2), split.image(2))


def test_the_writer_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not go with mask"), SplitWriter(tmp_path) as writer:
        writer.add(Sample("a", "a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8)))
    assert not (tmp_path / "index.parquet").exists()


def test_cut_short_or_missing_files_are_refused(tmp_path: Path) -> None:
    folder = ragged(tmp_path / "split", "ab", 1)
    (folder / "masks.bin").write_bytes(b"\0" * 5)
    with pytest.raises(InputError, match=r"masks\.bin is missing or cut short \(6 bytes expected\)"):
        PackedSplit(folder)
    with pytest.raises(InputError, match="is no packed split"):
        PackedSplit(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no packed splits"):
        read_pack(tmp_path / "nowhere")
