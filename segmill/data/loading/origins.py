"""Where each extra training sample comes from, as it is kept beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Origin(NamedTuple):
    """Where an extra sample comes from: a row of origins.parquet.

    ``kind`` is copy_paste or balance; ``target`` the train sample it is made from; ``source`` the train sample of each
    pasted object, ``classes`` its class id and ``boxes`` where it is now: top, left, height, width in px.
    A repeated sample (balance) has the rare classes it holds as ``classes`` and neither sources nor boxes.
    """

    id: str
    kind: str
    target: str
    source: list[str]
    classes: list[int]
    boxes: list[list[int]]

    def describe(self, class_names: Sequence[str]) -> str:
        """Say in a line what it is made from."""
        names = [class_names[class_id] for class_id in self.classes]
        if self.kind == "balance":
            return f"{self.target} again, for {', '.join(names)}"
        pasted = (f"{name} of {source}" for name, source in zip(names, self.source, strict=True))
        return f"{self.target} with {', '.join(pasted)}"


def read_origins(folder: Path) -> Iterator[Origin]:
    """Yield where the samples of an extra split come from, in the order in which they were made."""
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(folder / "origins.parquet").iter_batches():
        for row in batch.to_pylist():
            yield Origin(**row)


class OriginsWriter:
    """Writes origins.parquet, a thousand rows at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> OriginsWriter:
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = pa.list_(pa.int32())
        self._schema = pa.schema(
            {"id": pa.string(), "kind": pa.string(), "target": pa.string(), "source": pa.list_(pa.string())}
            | {"classes": ids, "boxes": pa.list_(ids)}
        )
        self._file = pq.ParquetWriter(self._path, self._schema)
        return self

    def add(self, origin: Origin) -> None:
        self._rows.append(origin._asdict())
        if len(self._rows) == 1000:
            self._flush()

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
