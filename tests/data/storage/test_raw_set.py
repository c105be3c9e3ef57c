from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from segmill.data.schema.mask_counts import append_counts
from segmill.data.storage import raw_set
from segmill.data.storage.raw_set import (
    StoredFile,
    TarShardWriter,
    is_sharded,
    read_index,
    sharded_samples,
    write_index,
)
from segmill.errors import InputError

FILES = {name: ((f"images/{name}.jpg", name.encode() * 300), (f"masks/{name}.png", name.encode())) for name in "cabde"}


def write_packs(folder: Path, names: str = "cabde") -> None:
    packs = TarShardWriter(folder)
    for name in names:
        packs.add(name, FILES[name])
    rows = packs.close()
    write_index(folder, append_counts(rows, [([0, 7], [3, 1])] * len(rows)))


def test_packs_are_plain_tars_named_by_their_content(tmp_path: Path) -> None:
    write_packs(tmp_path)
    (pack,) = (tmp_path / "packs").iterdir()
    assert pack.name == f"{hashlib.sha256(pack.read_bytes()).hexdigest()[:16]}.tar"
    with tarfile.open(pack) as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    assert held == {name: content for files in FILES.values() for name, content in files}


def test_the_index_says_where_each_file_lies_in_order_of_id(tmp_path: Path) -> None:
    write_packs(tmp_path)
    assert is_sharded(tmp_path)
    entries = list(sharded_samples(tmp_path))
    assert [entry.id for entry in entries] == list("abcde")
    for entry in entries:
        for part, (name, content) in zip((entry.image, entry.mask), FILES[entry.id], strict=True):
            assert (part.name, part.read(tmp_path)) == (name, content)
    rows = read_index(tmp_path)
    assert rows.column_names == raw_set.index_schema().names
    assert rows["mask_md5"][1].as_py() == hashlib.md5(b"b").hexdigest()
    assert (rows["ids"][0].as_py(), rows["pixels"][0].as_py()) == ([0, 7], [3, 1])


def test_a_pack_ends_at_its_number_of_samples_or_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_set, "SHARD_SAMPLES", 2)
    write_packs(tmp_path / "few")
    assert sorted(read_index(tmp_path / "few")["pack"].value_counts().field("counts").to_pylist()) == [1, 2, 2]
    monkeypatch.setattr(raw_set, "SHARD_SAMPLES", 1000)
    monkeypatch.setattr(raw_set, "SHARD_BYTES", 1000)  # less than one sample: each still gets in
    write_packs(tmp_path / "small")
    assert len(list((tmp_path / "small" / "packs").iterdir())) == 5


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_packs(tmp_path / name)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two


def test_a_pack_that_was_cut_short_is_said(tmp_path: Path) -> None:
    write_packs(tmp_path, "a")
    (entry,) = sharded_samples(tmp_path)
    pack = tmp_path / entry.mask.file
    pack.write_bytes(pack.read_bytes()[: entry.mask.offset])
    with pytest.raises(InputError, match=r"packs/\w+\.tar ends before masks/a\.png does"):
        entry.mask.read(tmp_path)
    assert StoredFile("x", entry.image.file, entry.image.offset, 3).read(tmp_path) == b"aaa"


def test_an_index_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"index\.parquet can't be read"):
        list(sharded_samples(tmp_path))
