"""Columns of samples.csv, such as camera or site, as columns of the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segmill.data.schema.manifest import SAMPLES_FILE, read_samples

if TYPE_CHECKING:
    import pyarrow


def with_sample_columns(table: pyarrow.Table, raw_dir: Path) -> pyarrow.Table:
    """Return the manifest with the columns of ``raw_dir/samples.csv``, texts, after its own.

    A sample without a row there, or with an empty cell, has null. Columns of a name that the manifest has itself are
    left out. InputError names the line of a malformed file.
    """
    import pyarrow as pa

    path = raw_dir / SAMPLES_FILE
    if not path.is_file():
        return table
    rows = {row["id"]: row for _, row in read_samples(path)}
    own = set(table.column_names)
    for name in dict.fromkeys(name for row in list(rows.values())[:1] for name in row):
        if name not in own:
            cells = [rows.get(sample_id, {}).get(name) or None for sample_id in table["id"].to_pylist()]
            table = table.append_column(pa.field(name, pa.string()), pa.array(cells, pa.string()))
    return table
