"""How the libraries that write a training's files say that the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disks import small_disk
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from segmill.training.distributed.launch import OF_A_FULL_DISK


@pytest.mark.parametrize("values", [10, 10_000, 1_000_000])
@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_full_disk_is_known_by_what_the_library_says(
    save: Callable[[dict[str, Tensor], Path], None], values: int, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        disk.fill()
        with pytest.raises((RuntimeError, SafetensorError)) as full:
            save({"weight": torch.zeros(values)}, disk.folder / "file")
    assert any(said in str(full.value) for said in OF_A_FULL_DISK), full.value
