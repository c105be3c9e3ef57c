from __future__ import annotations

import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest import intake
from segmill.data.ingest.intake import NewSample, SetChange, change_set, unpack_set, write_set
from segmill.data.schema.issues import IssuesFound, wrong_file
from segmill.data.schema.manifest import ClassInfo, DatasetInfo, read_dataset_info, read_samples
from segmill.data.schema.samples import list_samples
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import read_frozen
from segmill.data.storage import journal
from segmill.data.storage.raw_set import is_sharded, read_index
from segmill.errors import InputError

CLASSES = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000"))
INFO = DatasetInfo("tiny", CLASSES)
SHARES = SplitShares(0.25, 0.25, 0)


def encoded(value: int, kind: str = "PNG") -> bytes:
    """A 2 x 3 px file, all ``value`` but its first pixel."""
    pixels = np.full((2, 3), value, np.uint8)
    pixels[0, 0] = 0
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def sample(name: str, image: int = 50, mask: int = 1, **more: str) -> NewSample:
    return NewSample(name, encoded(image), ".png", encoded(mask), **more)


def held(raw_dir: Path) -> dict[str, tuple[str, bytes, bytes]]:
    """Return id -> name of image, its bytes, the mask's bytes."""
    entries, issues = list_samples(raw_dir)
    assert not issues
    return {e.id: (e.image.name, e.image.read(raw_dir), e.mask.read(raw_dir)) for e in entries}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=[False, True], ids=["loose", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def raw_dir(tmp_path: Path, packed: bool) -> Path:
    """Six samples a/0 to a/5."""
    folder = tmp_path / "data" / "raw"
    write_set(folder, INFO, [sample(f"a/{n}", image=n) for n in range(6)], shares=SHARES, packed=packed)
    assert is_sharded(folder) == packed
    return folder


def test_a_new_set_holds_the_bytes_that_came(raw_dir: Path) -> None:
    assert held(raw_dir) == {f"a/{n}": (f"images/a/{n}.png", encoded(n), encoded(1)) for n in range(6)}
    assert read_dataset_info(raw_dir) == INFO
    assert [path.name for path in raw_dir.parent.iterdir()] == ["raw"]


def test_its_splits_are_frozen(raw_dir: Path) -> None:
    splits = list(read_frozen(raw_dir).values())
    assert len(splits) == 6
    assert {split: splits.count(split) for split in set(splits)} == {"train": 3, "val": 1, "test": 2}


def test_the_index_counts_the_masks(tmp_path: Path) -> None:
    write_set(tmp_path / "raw", INFO, [sample("a", mask=1), sample("b", mask=255)], shares=SHARES, packed=True)
    rows = read_index(tmp_path / "raw")
    assert rows["ids"].to_pylist() == [[0, 1], [0, 255]]
    assert rows["pixels"].to_pylist() == [[1, 5], [1, 5]]


def test_what_is_wrong_is_listed_at_once_and_nothing_is_left(tmp_path: Path, packed: bool) -> None:
    came = [sample("a"), wrong_file("b.jpg", "it is empty", "remove it"), sample("c"), sample("a"), sample("../d")]
    with pytest.raises(IssuesFound) as error:
        write_set(tmp_path / "data" / "raw", INFO, came, shares=SHARES, packed=packed)
    assert [issue.file for issue in error.value.stopping] == ["b.jpg", "a", "../d"]
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../../b", "a//b", "a/.", ".hidden", "a/.b/c", "a\\b", "a\nb", "x" * 241]
)
def test_ids_stay_inside_the_set(tmp_path: Path, name: str) -> None:
    with pytest.raises(IssuesFound, match=r"1 problem in .*\n.*its id"):
        write_set(tmp_path / "raw", INFO, [sample(name)], shares=SHARES)
    assert list(tmp_path.iterdir()) == []


def test_a_strange_suffix_or_split_is_refused(tmp_path: Path) -> None:
    came = [NewSample("a", encoded(1), ".exe", encoded(1)), sample("b", split="dev")]
    with pytest.raises(IssuesFound, match=r"'.exe' is not one of .png(.|\n)*'dev' is not one of train, val, test"):
        write_set(tmp_path / "raw", INFO, came, shares=SHARES)


def test_a_set_is_not_written_over_another_nor_from_nothing(raw_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds something already"):
        write_set(raw_dir, INFO, [sample("b")], shares=SHARES)
    with pytest.raises(InputError, match="no sample came"):
        write_set(tmp_path / "other", INFO, [], shares=SHARES)


def test_a_set_is_added_to_corrected_and_cut(raw_dir: Path) -> None:
    before = read_frozen(raw_dir)
    came = [sample("b", image=9), sample("a/1", image=1, mask=255), sample("a/2", image=2)]
    assert change_set(raw_dir, came, remove=["a/0"], shares=SHARES) == SetChange(1, 1, 1, 1)
    found = held(raw_dir)
    assert list(found) == ["a/1", "a/2", "a/3", "a/4", "a/5", "b"]
    assert found["a/1"][2] == encoded(255)
    assert found["b"] == ("images/b.png", encoded(9), encoded(1))
    after = read_frozen(raw_dir)
    assert after.items() > before.items()  # nobody moved, a/0 comes back to where it was
    assert set(after) - set(before) == {"b"}


def test_nothing_new_touches_nothing(raw_dir: Path) -> None:
    before = state(raw_dir)
    assert change_set(raw_dir, [sample(f"a/{n}", image=n) for n in range(6)], shares=SHARES) == SetChange(0, 0, 0, 6)
    assert state(raw_dir) == before
    assert [path.name for path in raw_dir.parent.iterdir()] == ["raw"]


def test_a_failed_change_touches_nothing(raw_dir: Path) -> None:
    before = state(raw_dir)
    with pytest.raises(IssuesFound):
        change_set(raw_dir, [sample("b"), sample("b")], shares=SHARES)
    with pytest.raises(InputError, match=r"has no sample 'a/9' and 1 more; did you mean 'a/\d'\?"):
        change_set(raw_dir, [], remove=["a/9", "a/7"], shares=SHARES)
    with pytest.raises(InputError, match="'a/1' is to be removed and comes at the same time"):
        change_set(raw_dir, [sample("a/1")], remove=["a/1"], shares=SHARES)
    with pytest.raises(InputError, match="no sample would be left"):
        change_set(raw_dir, [], remove=[f"a/{n}" for n in range(6)], shares=SHARES)
    assert state(raw_dir) == before


def test_old_packs_are_neither_rewritten_nor_kept_when_empty(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw"
    write_set(raw_dir, INFO, [sample("a"), sample("b", image=60)], shares=SHARES, packed=True)
    first = state(raw_dir / "packs")
    change_set(raw_dir, [sample("c")], remove=["a"], shares=SHARES)
    second = state(raw_dir / "packs")
    assert first.items() < second.items() and len(second) == 2
    change_set(raw_dir, [sample("b", image=61)], shares=SHARES)
    third = state(raw_dir / "packs")
    assert len(third) == 2 and not first.keys() & third.keys()
    assert set(held(raw_dir)) == {"b", "c"}


def test_another_suffix_takes_the_place_of_the_old_file(raw_dir: Path) -> None:
    jpeg = NewSample("a/1", encoded(7, "JPEG"), ".JPG", encoded(1))
    assert change_set(raw_dir, [jpeg], shares=SHARES) == SetChange(0, 1, 0, 0)
    assert held(raw_dir)["a/1"] == ("images/a/1.JPG", encoded(7, "JPEG"), encoded(1))


def test_a_loose_set_that_grows_large_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_dir = tmp_path / "raw"
    monkeypatch.setattr(intake, "SHARDS_ABOVE", 3)
    write_set(raw_dir, INFO, [sample(name) for name in "abc"], shares=SHARES)
    assert not is_sharded(raw_dir)
    change_set(raw_dir, [sample("d"), sample("a", image=9)], remove=["b"], shares=SHARES)
    assert not is_sharded(raw_dir)
    change_set(raw_dir, [sample("e"), sample("c", image=8)], shares=SHARES)
    assert sorted(path.name for path in raw_dir.iterdir()) == ["dataset.yaml", "index.parquet", "packs", "splits.csv"]
    assert held(raw_dir) == {
        name: (f"images/{name}.png", encoded(image), encoded(1))
        for name, image in zip("acde", (9, 8, 50, 50), strict=True)
    }
    write_set(tmp_path / "new", INFO, [sample(name) for name in "abcd"], shares=SHARES)
    assert is_sharded(tmp_path / "new") and set(held(tmp_path / "new")) == set("abcd")


def test_groups_that_come_go_to_samples_csv_and_stay_together(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw"
    write_set(raw_dir, INFO, [sample(name, group=name[0]) for name in ("p1", "p2", "q1", "r1")], shares=SHARES)
    info = read_dataset_info(raw_dir)
    assert info.group == {"column": "group"}
    assert [info.group_of(name) for name in ("p1", "p2", "q1")] == ["p", "p", "q"]
    assert set(read_frozen(raw_dir)) == {"p", "q", "r"}
    with pytest.raises(IssuesFound, match=r"samples\.csv has no row with a group for its id 's1'"):
        change_set(raw_dir, [sample("s1")], shares=SHARES)
    change_set(raw_dir, [sample("p3", group="p")], remove=["q1"], shares=SHARES)
    rows = [row for _, row in read_samples(raw_dir / "samples.csv")]
    assert rows == [{"id": name, "group": name[0]} for name in ("p1", "p2", "p3", "r1")]


def test_a_set_without_groups_takes_groups_and_keeps_its_splits(raw_dir: Path) -> None:
    before = read_frozen(raw_dir)
    change_set(raw_dir, [sample("p1", group="p"), sample("p2", group="p")], shares=SHARES)
    info = read_dataset_info(raw_dir)
    assert [info.group_of(name) for name in ("a/0", "p1", "p2")] == ["a/0", "p", "p"]
    after = read_frozen(raw_dir)
    assert after.items() > before.items() and set(after) - set(before) == {"p"}


def test_the_sources_splits_hold_for_new_groups_alone(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw"
    came = [sample("a", split="val"), sample("b", split="test"), sample("c", split="val")]
    write_set(raw_dir, INFO, came, shares=SHARES)
    assert read_frozen(raw_dir) == {"a": "val", "b": "test", "c": "val"}
    change_set(raw_dir, [sample("a", image=1, split="test"), sample("d", split="test")], shares=SHARES)
    assert read_frozen(raw_dir) == {"a": "val", "b": "test", "c": "val", "d": "test"}
    torn = [sample("p1", group="p", split="train"), sample("p2", group="p", split="val")]
    with pytest.raises(IssuesFound, match="puts it into val, and others of its group 'p' into train"):
        write_set(tmp_path / "torn", INFO, torn, shares=SHARES)


def test_a_new_group_that_is_sealed_goes_to_test_and_an_old_one_stays(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw"
    write_set(raw_dir, INFO, [sample("a", split="train"), sample("b", split="val")], shares=SHARES)
    came = [sample("a", image=1), sample("c", split="train"), sample("d", split="train")]
    change_set(raw_dir, came, shares=SHARES, sealed=["a", "c"])
    assert read_frozen(raw_dir) == {"a": "train", "b": "val", "c": "test", "d": "train"}


CUT = [
    *(sample(f"x{n}", image=n, group=f"x@{split}", split=split) for n, split in enumerate(("train", "val", "test"))),
    sample("y0", image=9, group="y@val", split="val"),
    sample("y1", image=10, group="y@test", split="test"),
    sample("z0", image=11, group="z", split="test"),
]


def test_what_comes_of_a_cut_group_joins_its_part_in_train(tmp_path: Path, packed: bool) -> None:
    raw_dir = tmp_path / "raw"
    write_set(raw_dir, INFO, CUT, shares=SHARES, packed=packed)
    before = read_frozen(raw_dir)
    assert before == {
        "x@train": "train",
        "x@val": "val",
        "x@test": "test",
        "y@val": "val",
        "y@test": "test",
        "z": "test",
    }
    came = [
        sample("x3", image=20, group="x"),
        sample("x4", image=21, group="x@test", split="test"),  # another source's split cuts it too
        sample("y2", image=22, group="y", split="train"),
        sample("z1", image=23, group="z@val", split="val"),
        sample("w0", image=24, group="w", split="val"),
    ]
    change = change_set(raw_dir, came, shares=SHARES)
    info = read_dataset_info(raw_dir)
    assert {one.id: info.group_of(one.id) for one in came} == {
        "x3": "x@train", "x4": "x@train", "y2": "y@val", "z1": "z", "w0": "w",
    }  # fmt: skip
    assert read_frozen(raw_dir) == before | {"w": "val"}
    assert [note.partition(", where")[0] for note in change.notes] == [
        "2 new samples joined x@train in train",
        "1 new sample joined y@val in val",
        "1 new sample joined z in test",
    ]


def test_a_corrected_sample_stays_in_its_part_of_a_cut_group(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw"
    write_set(raw_dir, INFO, CUT, shares=SHARES)
    rows = (raw_dir / "samples.csv").read_bytes()
    change = change_set(
        raw_dir, [sample("x2", image=2, mask=255, group="x"), sample("x1", image=1, group="x")], shares=SHARES
    )
    assert change == SetChange(0, 1, 0, 1)
    assert (raw_dir / "samples.csv").read_bytes() == rows


def test_a_set_dealt_by_hash_keeps_its_splits_when_it_grows(raw_dir: Path) -> None:
    from segmill.data.splitting.splits import assign_splits

    (raw_dir / "splits.csv").unlink()
    hashed = assign_splits([f"a/{n}" for n in range(6)], shares=SHARES, official={})
    change_set(raw_dir, [sample("b")], shares=SHARES)
    assert read_frozen(raw_dir).items() > hashed.items()


def test_an_official_group_that_is_gone_is_no_longer_named(tmp_path: Path) -> None:
    raw_dir = tmp_path / "raw"
    info = DatasetInfo("tiny", CLASSES, splits={"train": ("a",), "val": ("b",), "test": ("c", "d")})
    write_set(raw_dir, info, [sample(name) for name in "abcd"], shares=SHARES)
    change_set(raw_dir, [], remove=["d"], shares=SHARES)
    assert read_dataset_info(raw_dir).splits == {"train": ("a",), "val": ("b",), "test": ("c",)}
    assert read_frozen(raw_dir)["d"] == "test"


def test_export_and_intake_give_the_same_set_again(raw_dir: Path, tmp_path: Path) -> None:
    change_set(raw_dir, [sample("p", group="g")], shares=SHARES)
    assert unpack_set(raw_dir, tmp_path / "out") == 7
    assert held(tmp_path / "out") == held(raw_dir)
    entries = list_samples(tmp_path / "out")[0]
    again = [NewSample(e.id, e.image.read(tmp_path / "out"), ".png", e.mask.read(tmp_path / "out")) for e in entries]
    info = read_dataset_info(tmp_path / "out")
    write_set(tmp_path / "again", info, again, shares=SHARES, packed=is_sharded(raw_dir), facts=tmp_path / "out")
    assert held(tmp_path / "again") == held(raw_dir)
    for name in ("dataset.yaml", "samples.csv", "splits.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (raw_dir / name).read_bytes()
    with pytest.raises(InputError, match="holds something already"):
        unpack_set(raw_dir, tmp_path / "out")


def test_progress_is_told(raw_dir: Path) -> None:
    said: list[tuple[str, int, int | None]] = []
    change_set(
        raw_dir, [sample(f"b/{n}") for n in range(60)], shares=SHARES, on_progress=lambda *news: said.append(news)
    )
    assert ("reading", 50, None) in said
    assert said[-1][0] == "counting pixels" and said[-1][1] == said[-1][2] > 50


KILLED_AT_A_MOVE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_intake import CHANGE, SHARES, change_set
really, left = os.replace, int(sys.argv[3])
def replace(source, target):
    global left
    if left < 0 and Path(target).name == "plan.json" or left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if left > 0 and (Path(target).name == "plan.json" or planned):
        planned.append(target)
        left -= 1
    really(source, target)
planned = []
os.replace = replace
change_set(Path(sys.argv[2]), CHANGE, remove=["a/0"], shares=SHARES)
"""
CHANGE = [sample("b", image=9), sample("a/1", image=1, mask=255), sample("c/d", image=8)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "moves", [pytest.param(-1, marks=pytest.mark.long), 1, pytest.param(3, marks=pytest.mark.long)]
)
def test_a_change_that_is_killed_is_old_or_new_and_the_next_try_completes_it(
    tmp_path: Path, raw_dir: Path, packed: bool, moves: int
) -> None:
    """SIGKILL before the plan is in place, when it just is, and with two of its files in place."""
    old = held(raw_dir)
    reference = tmp_path / "reference" / "raw"
    write_set(reference, INFO, [sample(f"a/{n}", image=n) for n in range(6)], shares=SHARES, packed=packed)
    change_set(reference, CHANGE, remove=["a/0"], shares=SHARES)
    command = [sys.executable, "-c", KILLED_AT_A_MOVE, str(Path(__file__).parent), str(raw_dir), str(moves)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    planned = moves > 0
    assert journal.interrupted(raw_dir) == planned
    assert journal.hidden_folder(raw_dir).is_dir()
    if planned:
        journal.finish(raw_dir)
        assert held(raw_dir) == held(reference)
    else:
        assert held(raw_dir) == old
    again = change_set(raw_dir, CHANGE, remove=[] if planned else ["a/0"], shares=SHARES)
    assert again.nothing == planned
    assert held(raw_dir) == held(reference)
    assert read_frozen(raw_dir) == read_frozen(reference)
    assert [path.name for path in raw_dir.parent.iterdir()] == ["raw"]


KILLED_WHILE_READING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_intake import INFO, SHARES, sample, write_set
def samples():
    for number in range(1000):
        yield sample(f"n{number}")
        if number == 100:
            print("reading", flush=True)
            time.sleep(60)
write_set(Path(sys.argv[2]), INFO, samples(), shares=SHARES, packed=sys.argv[3] == "True")
"""


def test_a_new_set_that_is_killed_was_never_there(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "data" / "raw"
    command = [sys.executable, "-c", KILLED_WHILE_READING, str(Path(__file__).parent), str(folder), str(packed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not folder.exists()
    write_set(folder, INFO, [sample("a")], shares=SHARES, packed=packed)
    assert set(held(folder)) == {"a"}
    assert [path.name for path in folder.parent.iterdir()] == ["raw"]
