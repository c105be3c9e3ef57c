"""A file system that a test fills to its last byte, and makes larger again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LARGE_BYTES = 2**30  # as large as a run wants it to be before it begins; takes memory only for what is written


@dataclass(frozen=True)
class SmallDisk:
    folder: Path

    def fill(self) -> None:
        """Make it as small as what is on it."""
        for _ in range(1000):  # a file may grow between the look and the change
            found = os.statvfs(self.folder)
            self._resize((found.f_blocks - found.f_bfree) * found.f_bsize)
            if os.statvfs(self.folder).f_bfree == 0:
                return
        raise AssertionError("it does not get full")

    def make_room(self) -> None:
        self._resize(LARGE_BYTES)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], stderr=subprocess.DEVNULL)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a file system at a new folder while the block runs."""
    folder.mkdir()
    if os.geteuid() or subprocess.call(["mount", "-t", "tmpfs", "-o", f"size={LARGE_BYTES}", "tmpfs", str(folder)]):
        pytest.skip("mounting a small file system needs root")
    try:
        (folder / "something").write_text("a size of 0 is no limit")
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
