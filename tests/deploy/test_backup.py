"""A backup says when it is damaged, before anything is put back."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from deploy.stack.backup import MANIFEST, verify
from segmill.errors import InputError


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    contents = {"ledger.dump": b"rows", "buckets/segmill-data/files/md5/ab": b"bytes"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    files = {name: sha256(content).hexdigest() for name, content in contents.items()}
    (tmp_path / MANIFEST).write_text(json.dumps({"files": files}))
    return tmp_path


def test_a_whole_backup_is_taken(backup: Path) -> None:
    assert len(verify(backup)["files"]) == 2


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda folder: (folder / "ledger.dump").write_bytes(b"row"), "ledger.dump"),
        (lambda folder: (folder / "buckets/segmill-data/files/md5/ab").unlink(), "buckets/segmill-data/files/md5/ab"),
        (lambda folder: (folder / "buckets/more").write_bytes(b""), "buckets/more"),
    ],
    ids=["cut", "missing", "added"],
)
def test_a_damaged_one_is_refused(backup: Path, damage: Callable[[Path], None], names: str) -> None:
    damage(backup)
    with pytest.raises(InputError, match=f"was changed: {names} is not what was backed up"):
        verify(backup)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no backup: it has no backup\.json"):
        verify(tmp_path)
