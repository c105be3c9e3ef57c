from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmill.data.ingest.builtin import write_street
from segmill.data.packing import shards
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.data.packing.resizing import Resizing
from segmill.data.packing.shards import Preparation
from segmill.data.schema.manifest import manifest_schema, part_columns, read_dataset_info, write_manifest
from segmill.data.schema.samples import list_samples
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import assign_splits
from segmill.data.storage.images import read_mask
from segmill.data.storage.raw_set import TarShardWriter, index_schema, write_index
from segmill.enhancement import enhance
from segmill.errors import InputError


def packed(raw_dir: Path, out_dir: Path, **options: object) -> Path:
    manifest = out_dir.with_suffix(".parquet")
    record(raw_dir, manifest)
    resizing, enhancement = (
        {key: options.pop(key) for key in keys if key in options}
        for keys in (("size", "resize", "overlap_px", "border_crop_px"), ("grayscale", "clahe"))
    )
    pack(raw_dir, manifest, out_dir, train=Preparation(Resizing(**resizing), **enhancement), **options)
    return out_dir


def record(raw_dir: Path, manifest: Path) -> None:
    """Write a manifest of the set as it is, in milliseconds: nothing is checked."""
    info = read_dataset_info(raw_dir)
    rows = []
    for entry in list_samples(raw_dir)[0]:
        contents = {"image": entry.image.read(raw_dir), "mask": entry.mask.read(raw_dir)}
        height, width = read_mask(contents["mask"]).shape
        group = info.group_of(entry.id)
        assert group is not None
        row = {"id": entry.id, "height": height, "width": width, "group": group}
        for kind, part in (("image", entry.image), ("mask", entry.mask)):
            row |= part_columns(kind, part)
            row[f"{kind}_sha256"] = hashlib.sha256(contents[kind]).hexdigest()
        rows.append(row)
    splits = assign_splits({row["group"] for row in rows}, shares=SplitShares(0.2, 0.2, 0), official=info.splits)
    rows = [{**row, "split": splits[row["group"]]} for row in rows]
    write_manifest(manifest, pa.Table.from_pylist(rows, schema=manifest_schema(info)))


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
    write_street(tmp_path / "raw", count=60, size=(256, 256))  # train is one shard
    manifest = tmp_path / "m.parquet"
    record(tmp_path / "raw", manifest)
    program = (
        "import sys, tracemalloc\n"
        "from pathlib import Path\n"
        "from segmill.data.packing.pack import pack\n"
        "root = Path(sys.argv[1])\n"
        "def into(name): pack(root / 'raw', root / 'm.parquet', root / name)\n"
        "into('first')\n"  # what is imported on first use takes memory, too
        "tracemalloc.start()\n"
        "into('packed')\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    # In a process of its own: the threads that other tests leave behind allocate as well.
    peak = int(subprocess.check_output([sys.executable, "-c", program, str(tmp_path)], text=True))
    written = sum(path.stat().st_size for path in (tmp_path / "packed").rglob("*.bin"))
    assert written == 60 * 256 * 256 * 4
    assert peak < written / 4


def test_files_that_changed_since_validation_are_refused(tiny_set: Path, tmp_path: Path) -> None:
    out = packed(tiny_set, tmp_path / "packed")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tiny_set / "images" / "b.png")
    with pytest.raises(InputError, match=r"b\.png changed since validation"):
        pack(tiny_set, tmp_path / "packed.parquet", out)
    (tiny_set / "images" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png is gone since validation"):
        pack(tiny_set, tmp_path / "packed.parquet", out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fit_fills_up_outside_the_statistics(tiny_set: Path, tmp_path: Path) -> None:
    out = packed(tiny_set, tmp_path / "packed", size=(6, 6), resize="fit")  # 4 x 6: a black row above and below
    train, info = PackedSplit(out / "train"), read_pack(out)
    assert (train.mask(0)[[0, 5]] == 255).all()
    assert info.class_pixels == (12, 12)
    np.testing.assert_allclose(info.mean, [10 / 255] * 3)
    np.testing.assert_allclose(info.std, [0] * 3, atol=1e-9)


def test_tiles_carry_their_place_and_their_origin(tiny_set: Path, tmp_path: Path) -> None:
    out = packed(tiny_set, tmp_path / "packed", size=(4, 4), resize="tile", overlap_px=1)
    train = PackedSplit(out / "train")
    assert train.ids == ["a@0_0", "a@0_2"]  # 6 px wide: the second starts at 3, drawn back to the border
    assert train.groups == ["a", "a"]
    assert train.mask(1).tolist() == [[1, 0, 0, 0]] * 4
    index = pq.read_table(out / "train" / "index.parquet").to_pydict()
    assert (index["source"], index["top"], index["left"]) == (["a", "a"], [0, 0], [0, 2])
    assert read_pack(out).samples == {"train": 2, "val": 1, "test": 1}
    whole = PackedSplit(packed(tiny_set, tmp_path / "large", size=(8, 8), resize="tile") / "train")
    assert (whole.ids, whole.shape(0)) == (["a"], (8, 8))


def test_only_train_is_cropped_and_enhanced(tmp_path: Path) -> None:
    write_street(tmp_path / "raw", count=30, size=(64, 64))
    plain = packed(tmp_path / "raw", tmp_path / "plain")
    out = packed(tmp_path / "raw", tmp_path / "packed", border_crop_px=(2, 3, 4, 5), grayscale=True, clahe=2.0)
    before, after = PackedSplit(plain / "train"), PackedSplit(out / "train")
    for index in range(len(before)):
        expected = enhance(before.image(index), grayscale=True, clahe=2.0)[2:-3, 4:-5]
        np.testing.assert_array_equal(after.image(index), expected)
        np.testing.assert_array_equal(after.mask(index), before.mask(index)[2:-3, 4:-5])
    for split in ("val", "test"):
        assert contents(plain / split) == contents(out / split)
    info = read_pack(out)
    assert (info.grayscale, info.clahe, read_pack(plain).clahe) == (True, 2.0, 0.0)
    mean = np.mean([after.image(index) for index in range(len(after))], axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(info.mean, mean)


def test_a_crop_that_leaves_nothing_stops_before_anything_is_packed(tiny_set: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves nothing of an image of 4 x 6 px"):
        packed(tiny_set, tmp_path / "packed", border_crop_px=(2, 2, 0, 0))


def into_packs(loose: Path, to: Path, packs: list[list[str]]) -> None:
    """Write samples of the loose set as a packed one; each list of ids becomes a pack."""
    to.mkdir(exist_ok=True)
    shutil.copy(loose / "dataset.yaml", to)
    tables = []
    for ids in packs:
        writer = TarShardWriter(to)
        for name in ids:
            files = [f"{kind}/{name}.png" for kind in ("images", "masks")]
            writer.add(name, [(file, (loose / file).read_bytes()) for file in files])
        tables.append(writer.close())
    rows = pa.concat_tables(tables)
    for name in ("ids", "pixels"):
        empty = pa.array([[]] * len(rows), index_schema().field(name).type)
        rows = rows.append_column(name, empty)
    write_index(to, rows)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 loose scenes of 32 x 32 px."""
    raw_dir = tmp_path_factory.mktemp("scenes")
    write_street(raw_dir, count=400, size=(32, 32))
    return raw_dir


@pytest.mark.parametrize("layout", ["loose", "packs"])
def test_one_percent_more_is_one_percent_of_the_work(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(shards, "USUAL_SAMPLES", 8)
    raw, out, store = tmp_path / "raw", tmp_path / "packed", tmp_path / "chunks"
    new = [f"street_s0039_f0{frame}" for frame in (2, 5, 6, 9)]
    old = [path.stem for path in sorted((scenes / "images").iterdir()) if path.stem not in new]

    def bring(*, all_of_it: bool) -> None:
        shutil.rmtree(raw, ignore_errors=True)
        if layout == "packs":  # packs are never written again: what is new is a new one
            packs = [old[start : start + 10] for start in range(0, len(old), 10)]
            into_packs(scenes, raw, packs + [new] * all_of_it)
        else:
            missing = () if all_of_it else [f"{name}.png" for name in new]
            shutil.copytree(scenes, raw, ignore=shutil.ignore_patterns(*missing))

    def work() -> dict[str, int]:
        done: list[tuple[int, int]] = []
        shutil.rmtree(out, ignore_errors=True)
        packed(raw, out, size=(16, 16), store_dir=store, on_progress=lambda *one: done.append(one))
        facts: dict[str, int] = json.loads((store / "last.json").read_text())
        assert done[-1] == (facts["samples"], facts["samples"])
        assert done == sorted(done)
        return facts

    bring(all_of_it=False)
    first = work()
    assert (first["samples"], first["decoded"], first["written"]) == (396, 396, first["shards"])
    before = {path.name: path.stat().st_ino for path in out.rglob("*.bin")}
    bring(all_of_it=True)
    second = work()
    assert (second["samples"], second["decoded"]) == (400, 4)
    assert 1 <= second["written"] <= 4
    after = {path.name: path.stat().st_ino for path in out.rglob("*.bin")}
    assert len(before.items() & after.items()) == second["shards"] - second["written"] > 30  # the very files
    assert {path.name for path in store.glob("*.bin")} == after.keys()  # and no others

    # the way here left no trace: packed afresh it is the same, byte for byte
    assert contents(packed(raw, tmp_path / "afresh", size=(16, 16))) == contents(out)
    third = work()
    assert (third["decoded"], third["written"]) == (0, 0)


def test_corrected_labels_and_other_settings(scenes: Path, tmp_path: Path) -> None:
    raw, store = tmp_path / "raw", tmp_path / "chunks"
    shutil.copytree(scenes, raw)

    def decoded(**options: object) -> int:
        shutil.rmtree(tmp_path / "packed", ignore_errors=True)
        packed(raw, tmp_path / "packed", store_dir=store, **options)
        return int(json.loads((store / "last.json").read_text())["decoded"])

    assert decoded() == 400
    for name in ("street_s0001_f03", "street_s0007_f00", "street_s0031_f09"):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(raw / "masks" / f"{name}.png")
    assert decoded() == 3
    split = PackedSplit(tmp_path / "packed" / "val")
    assert not split.mask(split.ids.index("street_s0001_f03")).any()
    assert decoded(clahe=2.0) == 240  # train, three sequences in five; val and test stay as they are
    assert decoded(clahe=2.0, code="another") == 400


def test_what_a_crash_left_in_the_store_is_made_again(tiny_set: Path, tmp_path: Path) -> None:
    store = tmp_path / "chunks"
    first = contents(packed(tiny_set, tmp_path / "packed", store_dir=store))
    damaged, unfinished, _ = sorted(store.glob("*.bin"))
    damaged.chmod(0o644)
    damaged.write_bytes(b"short")
    unfinished.with_suffix(".npz").unlink()
    (store / "0123.99.tmp").write_bytes(b"half")
    shutil.rmtree(tmp_path / "packed")
    assert contents(packed(tiny_set, tmp_path / "packed", store_dir=store)) == first
    assert json.loads((store / "last.json").read_text())["decoded"] == 2
    assert not list(store.glob("*.tmp"))


def test_flipped_bytes_in_the_store_are_noticed_and_made_again(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, store, out = tmp_path / "raw", tmp_path / "chunks", tmp_path / "packed"
    shutil.copytree(scenes, raw)
    first = contents(packed(raw, out, store_dir=store))
    linked = max(out.glob("train/*.bin"), key=lambda path: path.stat().st_size)
    flip_a_byte(linked)  # a hard link: the shard of the store changes with it, and its size does not
    shutil.rmtree(out)

    assert contents(packed(raw, out, store_dir=store)) == first
    assert json.loads((store / "last.json").read_text())["damaged"] == [linked.stem]
    assert f"{linked.name} does not hold the bytes that were written" in caplog.text


def test_no_sample_is_taken_over_from_a_shard_with_flipped_bytes(scenes: Path, tmp_path: Path) -> None:
    raw, store, out = tmp_path / "raw", tmp_path / "chunks", tmp_path / "packed"
    shutil.copytree(scenes, raw)
    packed(raw, out, store_dir=store)
    for shard in out.glob("train/*.bin"):
        flip_a_byte(shard)
    (left_out,) = (path for path in (raw / "images").glob(f"{PackedSplit(out / 'train').ids[5]}.*"))
    for path in (left_out, raw / "masks" / f"{left_out.stem}.png"):
        path.unlink()  # what shared a shard with it is in another one now, made of what the former holds
    shutil.rmtree(out)

    assert contents(packed(raw, out, store_dir=store)) == contents(packed(raw, tmp_path / "afresh"))


def flip_a_byte(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        (byte,) = file.read(1)
        file.seek(0)
        file.write(bytes([byte ^ 1]))


def test_samples_of_the_same_bytes_share_what_they_can(tiny_set: Path, tmp_path: Path) -> None:
    info = (tiny_set / "dataset.yaml").read_text()
    (tiny_set / "dataset.yaml").write_text(info.replace("train: [a]", "train: [a, d]"))
    for kind in ("images", "masks"):
        shutil.copy(tiny_set / kind / "a.png", tiny_set / kind / "d.png")
    train = PackedSplit(packed(tiny_set, tmp_path / "packed") / "train")
    assert train.ids == ["a", "d"]
    np.testing.assert_array_equal(train.image(0), train.image(1))
