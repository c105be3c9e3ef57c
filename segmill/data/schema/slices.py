"""Values of manifest columns by sample, which cut a split into slices: by camera, by site, by size."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.data.schema.manifest import read_manifest
from segmill.errors import InputError, near_miss

if TYPE_CHECKING:
    import pyarrow

MOST_VALUES = 20  # of a column that makes slices
NOT_GIVEN = "not given"  # the value of a sample that has none


def slice_values(
    manifest: Path, ids: Sequence[str], columns: Collection[str], setting: str = "promotion.guards.slices"
) -> dict[str, list[str]]:
    """Return, for each of ``columns`` of the manifest, the value of each sample of ``ids``, as text.

    Args:
        manifest: of the set.
        ids: samples of it.
        columns: their names.
        setting: the key of params.yaml that names the columns, for messages.

    Raises:
        InputError: there is no such column, it takes more than MOST_VALUES values on these samples or holds no single
            values; the message names the columns that can be used. Or the manifest lacks a sample.
    """
    if not columns:
        return {}
    table = read_manifest(manifest)
    place = {sample_id: number for number, sample_id in enumerate(table["id"].to_pylist())}
    lost = next((sample_id for sample_id in ids if sample_id not in place), None)
    if lost is not None:
        raise InputError(f"{manifest} has no sample '{lost}' of the packed split", "run `segmill retrain`")
    rows = table.take([place[sample_id] for sample_id in ids])
    return {name: _values(rows, name, setting) for name in columns}


def _values(rows: pyarrow.Table, name: str, setting: str) -> list[str]:
    said = f"{setting} names '{name}'"
    if name not in rows.column_names:
        hint = near_miss(name, _usable(rows))
        raise InputError(f"{said}, which is no column of the manifest{hint}", _what_to_do(rows))
    if not _single(rows, name):
        raise InputError(f"{said}, whose cells are lists", _what_to_do(rows))
    count = _count(rows, name)
    if count > MOST_VALUES:
        what = f"{said}, which has {count} values here; at most {MOST_VALUES} make slices"
        raise InputError(what, _what_to_do(rows))
    return [NOT_GIVEN if value is None else str(value) for value in rows[name].to_pylist()]


def _what_to_do(rows: pyarrow.Table) -> str:
    usable = ", ".join(_usable(rows)) or "none"
    return f"name another (there are: {usable}), or add a column to samples.csv and run `segmill validate`"


def _usable(rows: pyarrow.Table) -> list[str]:
    """Return the columns that cut these samples: those of 2 to MOST_VALUES values."""
    return [name for name in rows.column_names if _single(rows, name) and 2 <= _count(rows, name) <= MOST_VALUES]


def _count(rows: pyarrow.Table, name: str) -> int:
    return len(rows[name].unique())


def _single(rows: pyarrow.Table, name: str) -> bool:
    """Tell whether the column holds a text or a number in each cell."""
    import pyarrow as pa

    return not pa.types.is_nested(rows.schema.field(name).type)
