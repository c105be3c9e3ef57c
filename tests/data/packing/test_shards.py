from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest

from segmill.data.packing import shards
from segmill.data.packing.resizing import Resizing
from segmill.data.packing.shards import cut


def rows(ids: list[str], *, pack: str = "", side: int = 128) -> pa.Table:
    count = len(ids)
    return pa.table({"id": ids, "pack": [pack] * count, "height": [side] * count, "width": [side] * count})


def members(ids: list[str], **options: object) -> set[tuple[str, ...]]:
    """Return the shards as what they hold; a sample's key is its id here."""
    return {tuple(ids[shard.start : shard.stop]) for shard in cut(rows(ids, **options), ids, Resizing())}


IDS = [f"drive{n // 50:03d}/{n:05d}" for n in range(3000)]


def test_every_sample_is_in_one_chunk_in_order_and_few_chunks_are_tiny() -> None:
    made = cut(rows(IDS), IDS, Resizing())
    assert all(before.stop == after.start for before, after in pairwise(made))
    assert (made[0].start, made[-1].stop) == (0, 3000)
    assert 3000 / 128 / 2 < len(made) < 3000 / 128 * 2
    assert max(shard.stop - shard.start for shard in made) <= 512


def test_new_samples_change_the_chunks_they_fall_into_and_no_others() -> None:
    before = members(IDS)
    drive = members(sorted([*IDS, *(f"drive030/x{n}" for n in range(30))]))
    assert len(before - drive) == 1
    # In a shard that was cut because it was full, all moves on to the next: up to where an id's hash says so.
    assert len(before - members(sorted([*IDS, "drive010/x"]))) <= 2
    assert len(before - members([name for name in IDS if name != IDS[1234]])) <= 2


def test_a_chunk_ends_with_its_pack() -> None:
    table = pa.concat_tables([rows(IDS[:5], pack="packs/a.tar"), rows(IDS[5:9], pack="packs/b.tar")])
    made = cut(table, IDS[:9], Resizing())
    assert 5 in {shard.stop for shard in made}


def test_large_samples_make_chunks_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cut(rows(IDS[:200], side=2048), IDS[:200], Resizing())  # 16 MiB each
    assert max(shard.stop - shard.start for shard in made) == 4
    monkeypatch.setattr(shards, "MOST_BYTES", 2**20)
    assert len(cut(rows(IDS[:200], side=2048), IDS[:200], Resizing())) == 200  # a sample above the limit is alone


def test_the_key_is_that_of_the_samples() -> None:
    one, two = (cut(rows(IDS[:3]), keys, Resizing()) for keys in (["a", "b", "c"], ["a", "b", "d"]))
    assert one[-1].key != two[-1].key
    assert one == cut(rows(IDS[:3]), ["a", "b", "c"], Resizing())


def test_no_samples_make_no_chunk() -> None:
    assert cut(rows([]), [], Resizing()) == []
