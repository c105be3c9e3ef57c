"""segmill's own layout, loose or packed: it comes in as it is."""

from __future__ import annotations

from pathlib import PurePosixPath

from segmill.data.ingest.formats.reading import FileError, Loaded, Row, SetFolder, Signs, SourceContents, signs
from segmill.data.schema.manifest import INFO_FILE, SAMPLES_FILE, DatasetInfo, read_dataset_info, read_samples
from segmill.data.schema.samples import list_samples
from segmill.data.splitting.splits import settled_splits
from segmill.data.storage.raw_set import INDEX_FILE, RawSample, is_sharded
from segmill.errors import InputError

LOOKS_FOR = "dataset.yaml, and images/ with masks/ (loose) or index.parquet with packs/ (packed)"


def recognise(folder: SetFolder) -> Signs:
    packed = folder.is_file(INDEX_FILE)
    return signs(
        (INFO_FILE, folder.is_file(INFO_FILE)),
        (INDEX_FILE, True) if packed else ("images/", folder.is_dir("images")),
        ("packs/", folder.is_dir("packs")) if packed else ("masks/", folder.is_dir("masks")),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List the samples; their bytes pass undecoded. Splits: dataset.yaml's, then those of splits.csv.

    Groups travel with the samples where they come from samples.csv; where they follow from the ids, the rule does. The
    other columns of samples.csv travel too.
    """
    own = read_dataset_info(folder.root)
    entries, issues = list_samples(folder.root)
    split_of = settled_splits(folder.root, own)
    by_column = isinstance(own.group, dict) and "column" in own.group
    columns = _columns(folder, str(own.group["column"]) if isinstance(own.group, dict) and by_column else "")
    packed = is_sharded(folder.root)
    rows = []
    for entry in entries:
        group = own.group_of(entry.id)
        split = split_of.get(group) if group is not None else None
        rows.append(
            Row(
                entry.id,
                entry.image.name,
                entry.mask.name,
                group if by_column else None,
                split,
                columns=columns.get(entry.id, {}),
            )
        )
    parts = {entry.id: entry for entry in entries} if packed else {}
    return SourceContents(
        classes=own.classes,
        rows=rows,
        load=lambda row: _load(folder, row, parts.get(row.id)),
        ignore_id=own.ignore_id,
        issues=issues,
        license=own.license,
        info=own,
    )


def _columns(folder: SetFolder, group: str) -> dict[str, dict[str, str]]:
    """Return what samples.csv says of each id, besides its group."""
    path = folder.root / SAMPLES_FILE
    if not path.is_file():
        return {}
    return {
        row["id"]: {name: cell for name, cell in row.items() if name not in ("id", group)}
        for _, row in read_samples(path)
    }


def _load(folder: SetFolder, row: Row, packed: RawSample | None) -> Loaded:
    suffix = PurePosixPath(row.image).suffix
    if packed is None:
        return Loaded(folder.content(row.image), suffix, folder.content(row.mask))
    contents = []
    for part in (packed.image, packed.mask):
        try:
            folder.resolve(part.file)
            contents.append(part.read(folder.root))
        except InputError as error:
            raise FileError(part.name, error) from error
        except OSError as error:
            wrong = InputError(f"its shard can't be opened ({error.strerror})", "bring the data version back with DVC")
            raise FileError(part.file, wrong) from error
    return Loaded(contents[0], suffix, contents[1])
