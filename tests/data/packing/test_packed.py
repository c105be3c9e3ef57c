from __future__ import annotations

import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmill.data.packing import packed, writing
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.data.packing.writing import Sample, SplitWriter, write_index
from segmill.errors import InputError


def test_the_writer_cuts_shards_and_names_them_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST_SAMPLES", 2)
    ragged(tmp_path / "old", "pq", 5)
    for _ in range(2):  # what was there before is replaced
        split = PackedSplit(ragged(tmp_path / "old", "cba", 1))
        assert len(list((tmp_path / "old").glob("*.bin"))) == 2
    assert split.ids == ["a", "b", "c"]  # in order of id, however they came
    assert [split.shape(index) for index in range(3)] == [(2, 3), (2, 2), (2, 1)]
    assert [int(split.image(index)[0, 0, 0]) for index in range(3)] == [3, 2, 1]
    again = ragged(tmp_path / "new", "cba", 1)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()
    }


def test_many_shards_take_few_file_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "OPEN_SHARDS", 3)
    monkeypatch.setattr(writing, "MOST_SAMPLES", 1)
    split = PackedSplit(ragged(tmp_path / "split", "abcdefgh", 1))
    views = [split.image(index) for index in range(8)]
    assert [int(view[0, 0, 0]) for view in views] == list(range(1, 9))  # views outlive their map's turn
    opened = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    del views
    left = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert (len(opened), len(left)) == (8, 3)


def test_a_hundred_thousand_samples_open_at_once_and_pickle_small(tmp_path: Path) -> None:
    count, each, side = 100_000, 500, 64
    keys = [f"{shard:032d}" for shard in range(count // each)]
    for key in keys:
        with (tmp_path / f"{key}.bin").open("wb") as file:
            file.truncate(each * side * side * 4)  # a hole: no byte on the disk
    number = np.arange(count)
    write_index(
        tmp_path,
        {
            "id": [f"drive{n // 100:04d}/{n:06d}" for n in range(count)],
            "group": [f"drive{n // 100:04d}" for n in range(count)],
            "shard": [keys[n // each] for n in range(count)],
            "offset": number % each * side * side * 4,
            "height": np.full(count, side),
            "width": np.full(count, side),
        },
    )
    began = time.perf_counter()
    split = PackedSplit(tmp_path)
    assert split.sizes() == [(side, side)]
    assert time.perf_counter() - began < 1
    assert len(pickle.dumps(split)) < 1000
    assert (len(split), len(split.groups), split.groups[-1]) == (count, count, "drive0999")
    assert split.image(count - 1).shape == (side, side, 3)


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
    (shard,) = folder.glob("*.bin")
    shard.write_bytes(b"\0" * 23)
    with pytest.raises(InputError, match=r"\.bin is missing or cut short \(24 bytes expected\)"):
        PackedSplit(folder)
    shard.unlink()
    with pytest.raises(InputError, match="is missing or cut short"):
        PackedSplit(folder)
    with pytest.raises(InputError, match="is no packed split"):
        PackedSplit(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no packed splits"):
        read_pack(tmp_path / "nowhere")


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    ids = draw(st.lists(st.text("ab/0_Ä", min_size=1, max_size=6), unique=True, max_size=8))
    made = []
    for number, sample_id in enumerate(ids):
        shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
        random = np.random.default_rng(draw(st.integers(0, 2**16)))
        image, mask = random.integers(0, 256, (*shape, 3), np.uint8), random.integers(0, 256, shape, np.uint8)
        made.append(Sample(sample_id, draw(st.sampled_from(["g", f"g{number}"])), image, mask))
    return made


@settings(max_examples=40, deadline=None, derandomize=True)
@given(written=samples(), most_samples=st.integers(1, 4))
def test_any_samples_come_back_from_shards_in_order_of_id(written: list[Sample], most_samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "MOST_SAMPLES", most_samples)
        with SplitWriter(Path(folder)) as writer:
            for sample in written:
                writer.add(sample)
        split = PackedSplit(Path(folder))

        in_order = sorted(written, key=lambda sample: sample.id.encode())
        assert (split.ids, split.groups) == ([one.id for one in in_order], [one.group for one in in_order])
        assert len(list(Path(folder).glob("*.bin"))) == len({*split._shards}) <= -(-len(written) // most_samples)
        for number, sample in enumerate(in_order):
            np.testing.assert_array_equal(split.image(number), sample.image)
            np.testing.assert_array_equal(split.mask(number), sample.mask)
            assert split.shape(number) == sample.mask.shape


def test_a_sample_that_is_not_of_bytes_is_refused(tmp_path: Path) -> None:
    image, mask = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    with SplitWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="a: image uint16 and mask uint8 must be uint8"):
            writer.add(Sample("a", "g", image.astype(np.uint16), mask))
        with pytest.raises(ValueError, match=r"a: image \(4, 6, 3\) does not go with mask \(4, 5\)"):
            writer.add(Sample("a", "g", image, mask[:, :5]))
