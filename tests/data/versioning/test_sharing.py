from __future__ import annotations

import os
from pathlib import Path

import pytest

from segmill.data.versioning.sharing import share, shareable


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("there", [None, b"weights"])
def test_two_names_of_the_same_bytes(original: Path, there: bytes | None) -> None:
    other = original.parent / "new" / "other.safetensors"
    if there is not None:
        other.parent.mkdir()
        other.write_bytes(there)
    assert share(original, other) and share(original, other)
    assert other.read_bytes() == b"weights" and other.stat().st_mode & 0o777 == 0o444
    assert other.samefile(original) or other.stat().st_nlink == 1, "a hard link, or a clone"
    assert list(other.parent.iterdir()) == [other]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_on_two_disks_nothing_is_shared_and_nothing_harmed(original: Path) -> None:
    other = Path("/dev/shm") / f"segmill-{os.getpid()}" / "other.safetensors"
    try:
        assert not share(original, other)
        assert list(other.parent.iterdir()) == []
    finally:
        other.parent.rmdir()


def test_only_what_is_never_written_in_place(tmp_path: Path) -> None:
    for name in ("a/weights.safetensors", "shard.bin", "metrics.json", "index.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in shareable(tmp_path)] == ["weights.safetensors", "shard.bin"]
    assert shareable(tmp_path / "missing") == []
