from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.ingest.intake import NewSample, change_set
from segmill.data.schema.manifest import ClassInfo, DatasetInfo, write_dataset_info
from segmill.data.splitting.shares import SplitShares
from segmill.data.versioning import history
from segmill.data.versioning.history import LogEntry, append_log, compare, log_path, read_contents, read_log, resolve
from segmill.data.versioning.repository import create_repository
from segmill.data.versioning.versions import bring_data, explained, store
from segmill.errors import InputError

CLASSES = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000"))
SHARES = SplitShares(0.25, 0.25, 0)


def entry(version: str, before: str | None = None, when: str = "2026-01-01T00:00:00+00:00") -> LogEntry:
    return LogEntry(version * 32, before * 32 if before else None, when, "me", "why", 3, 9, 1, 0, 0, 0, 0, {"a": 1})


def put(raw_dir: Path, name: str, image: int, things: int) -> None:
    """Write a sample of 2 x 4 px whose mask has ``things`` pixels of class 1."""
    mask = np.zeros(8, np.uint8)
    mask[:things] = 1
    for kind, pixels in (("images", np.full((2, 4), image, np.uint8)), ("masks", mask.reshape(2, 4))):
        path = raw_dir / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a loose set of a, b and c, never added."""
    create_repository(tmp_path)
    raw_dir = tmp_path / "data" / "raw"
    write_dataset_info(raw_dir, DatasetInfo("tiny", CLASSES))
    for number, name in enumerate("abc"):
        put(raw_dir, name, image=number, things=2)
    return tmp_path


def test_the_log_is_a_json_object_a_line_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_log(path) == []
    late, early = entry("b", "a", "2026-02-01T00:00:00+00:00"), entry("a")
    for one in (late, early):
        append_log(path, one)
    assert [json.loads(line)["version"][0] for line in path.read_text().splitlines()] == ["b", "a"]
    assert read_log(path) == [early, late]
    path.write_text(path.read_text() + "<<<<<<< HEAD\n")
    with pytest.raises(InputError, match="line 3 is no entry of the log"):
        read_log(path)


def test_logs_of_two_branches_merge_in_git(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    path = tmp_path / "history.jsonl"
    git("init", "-q", "-b", "main")
    append_log(path, entry("a"))
    git("add", "-A")
    git("commit", "-qm", "a")
    for branch, name, month in (("other", "b", 3), ("main", "c", 2)):
        git("checkout", "-q", *([] if branch == "main" else ["-b"]), branch)
        append_log(path, entry(name, "a", f"2026-0{month}-01T00:00:00+00:00"))
        git("commit", "-qam", name)
    git("merge", "-q", "other", "-m", "both")
    assert [one.version[0] for one in read_log(path)] == ["a", "c", "b"]


def test_versions_are_named_by_digits_and_from_head() -> None:
    log = [entry("a"), entry("b", "a"), replace(entry("c", "b"), version="bbbc" + "c" * 28)]
    head = log[2].version
    assert resolve(log, head, "aaaa") is log[0]
    assert resolve(log, head, "HEAD") is log[2]
    assert resolve(log, head, "HEAD~") is resolve(log, head, "HEAD~1") is log[1]
    assert resolve(log, head, "HEAD~2") is log[0]
    assert resolve(log, log[1].version, "HEAD~1") is log[0]
    for text, said in (
        ("HEAD~3", "there is no version HEAD~3"),
        ("bbb", "'bbb' names no version"),
        ("bbbb", None),
        ("dddd", "no version begins with dddd"),
        ("main", "'main' names no version"),
    ):
        if said is None:
            assert resolve(log, head, text) is log[1]
            continue
        with pytest.raises(InputError, match=said):
            resolve(log, head, text)
    twice = [*log, replace(entry("a"), version="aaaab" + "0" * 27)]
    with pytest.raises(InputError, match="2 versions begin with aaaa"):
        resolve(twice, head, "aaaa")


def test_what_changed_in_place_is_found_and_logged(root: Path) -> None:
    raw_dir = root / "data" / "raw"
    first = bring_data(root, "data/raw", None)
    put(raw_dir, "a", image=0, things=5)  # relabelled
    put(raw_dir, "b", image=77, things=2)  # another image
    for kind in ("images", "masks"):
        (raw_dir / kind / "c.png").unlink()
    put(raw_dir, "d/e", image=4, things=1)
    second = bring_data(root, "data/raw", None)
    with store(root, None) as files:
        before, after = read_contents(files, first.md5), read_contents(files, second.md5)
        found = compare(files, before, after)
    assert (found.added, found.removed, found.relabelled, found.reimaged) == (("d/e",), ("c",), ("a",), ("b",))
    assert found.pixels[:2].tolist() == [-2, 2]  # a: -3 +3; c goes: -6 -2; d/e comes: +7 +1
    old, new = read_log(log_path(raw_dir))
    assert (old.message, old.before, old.samples, old.added) == ("first version", None, 3, 3)
    assert old.class_pixels == {"ground": 18, "thing": 6}
    assert (new.message, new.before, new.version) == ("changed in place", first.md5, second.md5)
    assert (new.samples, new.added, new.removed, new.relabelled, new.reimaged) == (3, 1, 1, 1, 1)
    assert new.class_pixels == {"ground": 16, "thing": 8}


def test_a_packed_version_is_compared_by_its_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segmill.data.ingest import intake

    raw_dir = root / "data" / "raw"
    loose = bring_data(root, "data/raw", None)
    monkeypatch.setattr(intake, "SHARDS_ABOVE", 3)
    put(root / "more", "d", image=9, things=8)
    image, mask = ((root / "more" / kind / "d.png").read_bytes() for kind in ("images", "masks"))
    with explained(root, "data/raw", "a fourth"):
        change_set(raw_dir, [NewSample("d", image, ".png", mask)], shares=SHARES)
    packed = bring_data(root, "data/raw", None)
    with store(root, None) as files:
        before, after = read_contents(files, loose.md5), read_contents(files, packed.md5)
        found = compare(files, before, after)
    assert (found.added, found.removed, found.relabelled, found.reimaged) == (("d",), (), (), ())
    assert found.pixels[:2].tolist() == [0, 8]
    assert read_log(log_path(raw_dir))[-1].class_pixels == {"ground": 18, "thing": 14}
    assert read_log(log_path(raw_dir))[-1].message == "a fourth"


def test_plain_dvc_add_is_entered_too(root: Path) -> None:
    from dvc.repo import Repo

    first = bring_data(root, "data/raw", None)
    put(root / "data" / "raw", "a", image=0, things=0)
    with Repo(str(root)) as repo:
        repo.add(str(root / "data" / "raw"))
    second = bring_data(root, "data/raw", None)
    assert second.state == "unchanged"
    last = read_log(log_path(root / "data" / "raw"))[-1]
    assert (last.version, last.before, last.message) == (second.md5, first.md5, "recorded with dvc add")
    assert (last.relabelled, last.class_pixels) == (1, {"ground": 20, "thing": 4})
    bring_data(root, "data/raw", None)
    assert len(read_log(log_path(root / "data" / "raw"))) == 2


def test_a_version_before_that_is_lost_leaves_the_counts_open(root: Path) -> None:
    import shutil

    bring_data(root, "data/raw", None)
    shutil.rmtree(root / ".dvc" / "cache")
    put(root / "data" / "raw", "z", image=1, things=1)
    bring_data(root, "data/raw", None)
    last = read_log(log_path(root / "data" / "raw"))[-1]
    assert (last.samples, last.added, last.relabelled) == (4, None, None)
    assert last.class_pixels == {"ground": 25, "thing": 7}


def test_a_broken_dataset_yaml_does_not_keep_a_version_out(root: Path) -> None:
    (root / "data" / "raw" / "dataset.yaml").write_text("name: [")
    bring_data(root, "data/raw", None)
    (only,) = read_log(log_path(root / "data" / "raw"))
    assert (only.samples, only.class_pixels) == (3, None)


def test_short_versions_can_be_typed() -> None:
    assert history.FEWEST <= history.SHORT
