"""How the libraries that write files say that the disk is full: known by number or by their own words."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import small_disk
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from segmill.files import is_of_a_full_disk


def save_array(tensors: dict[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, tensors["weight"].numpy())


@pytest.mark.parametrize("values", [10, 10_000, 1_000_000])
@pytest.mark.parametrize("save", [torch.save, save_file, save_array], ids=["torch", "safetensors", "numpy"])
def test_a_full_disk_is_known_by_what_the_library_says(
    save: Callable[[dict[str, Tensor], Path], None], values: int, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        disk.fill()
        with pytest.raises((RuntimeError, SafetensorError, OSError)) as full:
            save({"weight": torch.zeros(values)}, disk.folder / "file")
    assert is_of_a_full_disk(full.value), full.value


def test_other_errors_are_not_taken_for_it() -> None:
    others = (OSError(errno.EACCES, "Permission denied"), OSError("Not a gzipped file"), RuntimeError("shape mismatch"))
    assert not any(map(is_of_a_full_disk, others))
    assert is_of_a_full_disk(OSError("80 requested and 12 written"))
