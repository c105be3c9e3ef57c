"""What a set holds already, as loose files or in shards, and how loose samples are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from segmill.data.schema.samples import list_samples
from segmill.data.storage.raw_set import RawSample, md5_of, read_index


class SampleWriter(Protocol):
    """Takes the files of one sample after another."""

    def add(self, sample_id: str, files: Sequence[tuple[str, bytes]]) -> None: ...


class LooseWriter:
    """Writes samples as files below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, sample_id: str, files: Sequence[tuple[str, bytes]]) -> None:
        for name, content in files:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass
class LooseSamples:
    """The samples of a loose set."""

    ids: dict[str, RawSample]
    raw_dir: Path

    @classmethod
    def of(cls, raw_dir: Path) -> LooseSamples:
        return cls({entry.id: entry for entry in list_samples(raw_dir)[0]}, raw_dir)

    def holds(self, sample_id: str, files: Sequence[tuple[str, bytes]]) -> bool:
        """Tell whether the sample is there with these names and bytes."""
        parts = (self.ids[sample_id].image, self.ids[sample_id].mask)
        return all(
            part.name == name and part.read(self.raw_dir) == content
            for part, (name, content) in zip(parts, files, strict=True)
        )


class ShardedSamples:
    """The samples of a set in shards: ``ids`` says in which row of ``rows`` each is."""

    def __init__(self, raw_dir: Path) -> None:
        self.rows = read_index(raw_dir).combine_chunks()
        self.ids = {sample_id: row for row, sample_id in enumerate(self.rows["id"].to_pylist())}

    def holds(self, sample_id: str, files: Sequence[tuple[str, bytes]]) -> bool:
        """Tell whether the sample is there with these names and bytes."""
        row = self.ids[sample_id]
        return all(
            self.rows[f"{kind}_name"][row].as_py() == name and self.rows[f"{kind}_md5"][row].as_py() == md5_of(content)
            for kind, (name, content) in zip(("image", "mask"), files, strict=True)
        )
