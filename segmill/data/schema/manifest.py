"""What a data set is: dataset.yaml (classes, groups, licence), samples.csv (facts per sample), and the manifest."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segmill.data.storage.raw_set import StoredFile
from segmill.errors import InputError, near_miss
from segmill.files import replacing

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("train", "val", "test")
IGNORE_ID = 255
INFO_FILE = "dataset.yaml"
SAMPLES_FILE = "samples.csv"
GroupRule = str | dict[str, str | int] | None
_INFO_KEY = b"segmill.dataset"


@dataclass(frozen=True)
class ClassInfo:
    """One class: its id in the masks, its name, its colour in pictures as "#rrggbb"."""

    id: int
    name: str
    color: str


@dataclass(frozen=True)
class SamplesFile:
    """Which state of which samples.csv to look groups up in. Small, so that it travels to other processes."""

    path: str
    modified_ns: int


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.yaml says.

    ``classes`` holds ids 0..K-1 in order. ``ignore_id`` marks mask pixels that count nowhere. ``group`` is the rule
    that tells a sample's group: a regular expression with a named group ``group``, found in the sample id;
    ``{"folder": N}``, the first N folders of the id; ``{"column": NAME}``, that column of samples.csv; None makes
    each sample its own group. ``splits`` assigns groups officially. ``former_classes`` says what became of the classes
    of earlier versions: former name -> classes that hold its pixels now; "" -> those whose pixels were not labelled.
    ``samples_file`` is set by ``read_dataset_info`` where the rule needs it; the manifest keeps the rule only.
    """

    name: str
    classes: tuple[ClassInfo, ...]
    ignore_id: int = IGNORE_ID
    group: GroupRule = None
    splits: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    license: str = ""
    source: str = ""
    former_classes: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    samples_file: SamplesFile | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def colors(self) -> tuple[str, ...]:
        return tuple(c.color for c in self.classes)

    def group_of(self, sample_id: str) -> str | None:
        """Return the sample's group, or None where the group rule has none for this id.

        Raises InputError where the rule is a column of samples.csv and this info did not come from a set's folder.
        """
        if self.group is None:
            return sample_id
        if isinstance(self.group, str):
            match = re.search(self.group, sample_id)
            return match["group"] if match else None
        if "folder" in self.group:
            folders = sample_id.split("/")[:-1]
            depth = int(self.group["folder"])
            return "/".join(folders[:depth]) if len(folders) >= depth else None
        if self.samples_file is None:
            raise InputError(f"groups come from {SAMPLES_FILE}, which no manifest holds", f"read the set's {INFO_FILE}")
        return _column(self.samples_file, str(self.group["column"])).get(sample_id)

    def why_no_group(self, sample_id: str) -> str:
        """Say why ``group_of`` gave None for this id, as the part of a sentence before what to do."""
        if isinstance(self.group, dict) and "column" in self.group:
            return f"{SAMPLES_FILE} has no row with a {self.group['column']} for its id '{sample_id}'"
        if isinstance(self.group, dict):
            return f"its id '{sample_id}' is in fewer folders than group.folder of {INFO_FILE} ({self.group['folder']})"
        return f"the group rule '{self.group}' of {INFO_FILE} does not match its id '{sample_id}'"


def read_dataset_info(raw_dir: Path) -> DatasetInfo:
    """Read ``raw_dir/dataset.yaml``, and samples.csv where the group rule names a column of it.

    InputError names the file, the line, the wrong key or value and what is allowed.
    """
    path = raw_dir / INFO_FILE
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; a data set is a folder with images/, masks/ and {INFO_FILE} "
            "(name, classes, ignore_id, group, license, source): write one"
        )
    try:
        content = YAML(typ="safe").load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())})", "correct it") from error
    info = _parse_info(content, str(path))
    if not (isinstance(info.group, dict) and "column" in info.group):
        return info
    samples = raw_dir.resolve() / SAMPLES_FILE
    if not samples.is_file():
        raise InputError(
            f"{path}: group.column is '{info.group['column']}', but there is no {SAMPLES_FILE} beside it; "
            "write one with the columns id and that one, or change the group rule"
        )
    file = SamplesFile(str(samples), samples.stat().st_mtime_ns)
    _column(file, str(info.group["column"]))
    return dataclasses.replace(info, samples_file=file)


def read_samples(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells by column of each row of a samples.csv, ``id`` among them.

    InputError names the line: no column ``id``, a column twice, a row of another length, an id twice or empty.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if "id" not in header:
                raise InputError(f"{path}: line 1 is {','.join(header)!r}", "it must name the columns, one of them id")
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise InputError(f"{path}: line 1 names column '{twice[0]}' twice", "rename one")
            seen: set[str] = set()
            place = header.index("id")
            for cells in rows:
                if not cells:
                    continue
                line = rows.line_num
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}: line {line} has {len(cells)} cells, line 1 has {len(header)}",
                        "correct it (a cell with a comma goes in quotes)",
                    )
                if not cells[place] or cells[place] in seen:
                    what = f"names id '{cells[place]}' again" if cells[place] else "has no id"
                    raise InputError(f"{path}: line {line} {what}", "each sample has one row")
                seen.add(cells[place])
                yield line, dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a UTF-8 table of comma-separated values ({error})", "save it as one"
        ) from error


@functools.lru_cache(maxsize=2)
def _column(file: SamplesFile, name: str) -> dict[str, str]:
    """Return id -> cell of one column: read once per process, each distinct cell kept once; empty cells left out."""
    cells: dict[str, str] = {}
    once: dict[str, str] = {}
    for line, row in read_samples(Path(file.path)):
        if name not in row:
            hint = near_miss(name, sorted(row))
            raise InputError(
                f"{file.path}: line 1 has no column '{name}', which group.column of {INFO_FILE} names; "
                f"it has {', '.join(row)}{hint}"
            )
        if not row[name].strip():
            raise InputError(
                f"{file.path}: line {line} leaves {name} empty for '{row['id']}'; every sample has a group"
            )
        cells[row["id"]] = once.setdefault(row[name], row[name])
    return cells


def write_dataset_info(raw_dir: Path, info: DatasetInfo) -> None:
    """Write ``raw_dir/dataset.yaml``; keys without content are left out."""
    content = {key: value for key, value in _as_plain(info).items() if value not in (None, "", {})}
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    with replacing(raw_dir / INFO_FILE) as draft, draft.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def manifest_schema(info: DatasetInfo) -> pyarrow.Schema:
    """Return the manifest's columns; the schema's metadata carries the data set's info."""
    import pyarrow as pa

    part = {"file": pa.string(), "offset": pa.int64(), "bytes": pa.int64()}
    columns = {
        "id": pa.string(),
        "image": pa.string(),
        "mask": pa.string(),
        **{f"{kind}_{what}": of for kind in ("image", "mask") for what, of in part.items()},
        "image_sha256": pa.string(),
        "mask_sha256": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "channels": pa.int32(),
        "group": pa.string(),
        "split": pa.string(),
        "class_pixels": pa.list_(pa.int64()),
        "ignored_pixels": pa.int64(),
        "findings": pa.list_(pa.string()),
    }
    return pa.schema(list(columns.items()), metadata={_INFO_KEY: json.dumps(_as_plain(info))})


def part_columns(kind: str, part: StoredFile) -> dict[str, Any]:
    """Return the manifest's columns that say where the ``image`` or ``mask`` of a sample is."""
    return {
        kind: part.name, f"{kind}_file": part.file, f"{kind}_offset": part.offset, f"{kind}_bytes": part.length
    }  # fmt: skip


def row_part(row: Mapping[str, Any], kind: str) -> StoredFile:
    """Return where the ``image`` or ``mask`` of a manifest's row is."""
    return StoredFile(row[kind], row[f"{kind}_file"], row[f"{kind}_offset"], row[f"{kind}_bytes"])


def write_manifest(path: Path, table: pyarrow.Table) -> None:
    """Write the manifest atomically; ``table`` has the columns and metadata of ``manifest_schema``."""
    import pyarrow.parquet as pq

    with replacing(path) as draft:
        pq.write_table(table, draft)


def read_manifest(path: Path) -> pyarrow.Table:
    """Read a manifest; InputError where there is none or the file is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"manifest {path} does not exist", "run `segmill validate` first") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({error})", "run `segmill validate` again") from error
    if _INFO_KEY not in (table.schema.metadata or {}):
        raise InputError(f"{path} is a Parquet file but no segmill manifest", "run `segmill validate` again")
    return table


def manifest_info(table: pyarrow.Table) -> DatasetInfo:
    """Return the data set's info that travels in the manifest's metadata."""
    return _parse_info(json.loads(table.schema.metadata[_INFO_KEY]), "manifest")


def _as_plain(info: DatasetInfo) -> dict[str, Any]:
    plain = dataclasses.asdict(info)
    del plain["samples_file"]
    plain["classes"] = list(plain["classes"])
    plain["splits"] = {split: list(groups) for split, groups in info.splits.items()}
    former = {name: list(now) for name, now in plain.pop("former_classes").items()}
    return plain | ({"former_classes": former} if former else {})  # manifests without it keep their bytes


def _parse_info(content: object, where: str) -> DatasetInfo:
    fields = [f.name for f in dataclasses.fields(DatasetInfo) if f.name != "samples_file"]
    content = _mapping(content, where, allowed=fields, required=["name", "classes"])
    name = content["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"{where}: name is {name!r}", "use letters, digits, '.', '_' and '-'")
    classes = _parse_classes(content["classes"], where)
    ignore_id = content.get("ignore_id", IGNORE_ID)
    if type(ignore_id) is not int or not len(classes) <= ignore_id <= 255:
        raise InputError(
            f"{where}: ignore_id is {ignore_id!r}; it must be an integer from {len(classes)} "
            "(the first id that is no class) to 255"
        )
    license, source = (_parse_text(content, key, where) for key in ("license", "source"))
    group = _parse_group(content.get("group"), where)
    splits = _parse_splits(content.get("splits") or {}, where)
    former = _parse_former_classes(content.get("former_classes") or {}, [one.name for one in classes], where)
    return DatasetInfo(name, classes, ignore_id, group, splits, license, source, former)


def _mapping(content: object, where: str, *, allowed: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{where}: found {content!r}", f"write a mapping with the keys {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            hint = near_miss(str(key), list(allowed))
            raise InputError(f"{where}: unknown key '{key}'", f"allowed are {', '.join(allowed)}{hint}")
    for key in required:
        if key not in content:
            raise InputError(f"{where}: key '{key}' is missing", "add it")
    return content


def _parse_classes(content: object, where: str) -> tuple[ClassInfo, ...]:
    if not isinstance(content, list) or not 2 <= len(content) <= 255:
        raise InputError(
            f"{where}: classes must be a list of 2 to 255 entries like {{id: 0, name: sky, color: '#87ceeb'}}"
        )
    keys = ("id", "name", "color")
    rows = [_mapping(row, f"{where}: classes[{i}]", allowed=keys, required=keys) for i, row in enumerate(content)]
    for expected, row in enumerate(rows):
        at = f"{where}: classes[{expected}]"
        if type(row["id"]) is not int or row["id"] != expected:
            raise InputError(f"{at}: id is {row['id']!r}", f"ids run 0, 1, 2, ... in order, so it must be {expected}")
        if not isinstance(row["name"], str) or not row["name"].strip():
            raise InputError(f"{at}: name is {row['name']!r}", "it must be text that is not empty")
        if not isinstance(row["color"], str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", row["color"]):
            raise InputError(f"{at}: color is {row['color']!r}", "write it in quotes as '#rrggbb'")
    names = [row["name"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where}: class name '{twice[0]}' appears twice", "every class needs its own name")
    return tuple(ClassInfo(**row) for row in rows)


def _parse_text(content: Mapping[str, Any], key: str, where: str) -> str:
    value = content.get(key) or ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {value!r}", "write it as text in quotes")
    return value


def _parse_group(rule: object, where: str) -> GroupRule:
    if rule is None:
        return None
    if isinstance(rule, dict):
        return _parse_group_mapping(rule, where)
    if not isinstance(rule, str):
        raise InputError(
            f"{where}: group is {rule!r}; write a regular expression in quotes, {{folder: N}} or {{column: NAME}}, "
            "or leave it out"
        )
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(f"{where}: group '{rule}' is no regular expression ({error})", "correct it") from error
    if "group" not in pattern.groupindex:
        raise InputError(f"{where}: group '{rule}' has no part (?P<group>...)", "mark the part that names the group")
    return rule


def _parse_group_mapping(rule: dict[str, Any], where: str) -> dict[str, str | int]:
    rule = _mapping(rule, f"{where}: group", allowed=("folder", "column"), required=())
    if len(rule) != 1:
        raise InputError(f"{where}: group has {len(rule)} keys", "write one, {folder: N} or {column: NAME}")
    if "folder" in rule and (type(rule["folder"]) is not int or rule["folder"] < 1):
        raise InputError(
            f"{where}: group.folder is {rule['folder']!r}; write how many of an id's first folders name the group, "
            "1 or more"
        )
    if "column" in rule and (not isinstance(rule["column"], str) or rule["column"] in ("", "id")):
        raise InputError(
            f"{where}: group.column is {rule['column']!r}", f"name a column of {SAMPLES_FILE} other than id"
        )
    return dict(rule)


def _parse_splits(content: object, where: str) -> dict[str, tuple[str, ...]]:
    splits = _mapping(content, f"{where}: splits", allowed=SPLITS, required=())
    seen: dict[str, str] = {}
    for split, groups in splits.items():
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise InputError(f"{where}: splits.{split} is {groups!r}", "write a list of group names in quotes")
        for group in groups:
            if seen.setdefault(group, split) != split:
                raise InputError(f"{where}: group '{group}' is in {seen[group]} and {split}", "keep it in one split")
    return {split: tuple(groups) for split, groups in splits.items()}


def _parse_former_classes(content: object, names: Sequence[str], where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, dict):
        raise InputError(f"{where}: former_classes is {content!r}", "write former names, each with classes of today")
    former = {str(name): tuple(now if isinstance(now, list) else [now]) for name, now in content.items()}
    for name, target in [(name, target) for name, targets in former.items() for target in targets]:
        if target not in names:
            hint = near_miss(str(target), list(names))
            raise InputError(
                f"{where}: former_classes.{name} names {target!r}", f"allowed are {', '.join(names)}{hint}"
            )
    return former
