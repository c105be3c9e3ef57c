from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from segmill.data.schema.manifest import ClassInfo, DatasetInfo
from segmill.data.schema.mask_counts import append_counts, count_mask, count_masks, group_pixels, total_pixels
from segmill.data.storage.raw_set import StoredFile

INFO = DatasetInfo(
    "tiny", (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000")), group=r"^(?P<group>[ab])"
)


def encoded(pixels: list[list[int]]) -> bytes:
    file = BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_mask_is_counted_by_its_raw_values() -> None:
    assert count_mask(encoded([[0, 0, 255], [9, 0, 9]])) == ([0, 9, 255], [3, 2, 1])
    assert count_mask(b"no mask") == ([], [])


def test_many_masks_are_counted_in_order_by_all_processes(tmp_path: Path) -> None:
    (tmp_path / "low.png").write_bytes(encoded([[1]]))
    (tmp_path / "high.png").write_bytes(encoded([[2, 2]]))
    names = ["low.png", "high.png"] * 300  # more than parallel.BIG
    counts = list(count_masks([(tmp_path, StoredFile(name, name)) for name in names]))
    assert counts == [([1], [1]), ([2], [2])] * 300


def test_pixels_are_summed_over_all_and_per_group() -> None:
    rows = pa.chunked_array([["a1", "b1"], ["x", "a2"]])
    table = append_counts(pa.table({"id": rows}), [([0, 1], [5, 2]), ([], []), ([0], [100]), ([1, 255], [4, 7])])
    total = total_pixels(table)
    assert (total[0], total[1], total[255], total.sum()) == (105, 6, 7, 118)
    sums = {group: pixels.tolist() for group, pixels in group_pixels(INFO, table).items()}
    assert sums == {"a": [5, 6], "b": [0, 0]}  # x has no group; 255 is no class
