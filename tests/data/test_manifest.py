from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmill.data.manifest import (
    ClassInfo,
    DatasetInfo,
    manifest_info,
    manifest_schema,
    read_dataset_info,
    read_manifest,
    write_dataset_info,
    write_manifest,
)
from segmill.errors import InputError

INFO = DatasetInfo(
    name="tiny",
    classes=(ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000")),
    ignore_id=7,
    group=r"^(?P<group>.+)_z\d+$",
    splits={"train": ("0001",), "test": ("on", "b")},
    license="CC0-1.0",
    source="drawn: here",
)
CLASSES = "classes: [{id: 0, name: a, color: '#000000'}, {id: 1, name: b, color: '#ffffff'}]\n"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_dataset_info(tmp_path, INFO)
    assert read_dataset_info(tmp_path) == INFO
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.yaml"]


def test_left_out_keys_have_their_stated_values(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("name: x\n" + CLASSES)
    info = read_dataset_info(tmp_path)
    assert (info.ignore_id, info.group, info.splits, info.license) == (255, None, {}, "")
    assert info.class_names == ("a", "b")
    assert info.num_classes == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nclases: []\n", "unknown key 'clases'.*did you mean 'classes'"),
        ("name: x\n", "key 'classes' is missing"),
        ("- 1\n", "write a mapping"),
        ("name: [\n", "is not valid YAML"),
        ("name: a/b\n" + CLASSES, "name is 'a/b'"),
        (CLASSES + "name: x\nignore_id: 1\n", "ignore_id is 1; it must be an integer from 2"),
        (CLASSES + "name: x\nignore_id: 256\n", "ignore_id is 256"),
        ("name: x\nclasses: [{id: 0, name: a, color: '#000000'}]\n", "2 to 255 entries"),
        (CLASSES.replace("id: 1", "id: 2") + "name: x\n", r"classes\[1\]: id is 2.*must be 1"),
        (CLASSES.replace("name: b", "name: a") + "name: x\n", "class name 'a' appears twice"),
        (CLASSES.replace("'#ffffff'", "white") + "name: x\n", "color is 'white'"),
        (CLASSES.replace("color: '#ffffff'", "colour: '#ffffff'") + "name: x\n", "did you mean 'color'"),
        (CLASSES + "name: x\ngroup: '(.*)_z'\n", r"no part \(\?P<group>"),
        (CLASSES + "name: x\ngroup: '(?P<group>'\n", "no regular expression"),
        (CLASSES + "name: x\nsplits: {trian: [a]}\n", "unknown key 'trian'.*did you mean 'train'"),
        (CLASSES + "name: x\nsplits: {train: [a], test: [a]}\n", "group 'a' is in train and test"),
        (CLASSES + "name: x\nsplits: {train: [1]}\n", "list of group names in quotes"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_dataset_info(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.yaml does not exist"):
        read_dataset_info(tmp_path)


def test_the_group_rule_names_the_group_or_nothing() -> None:
    assert INFO.group_of("site/brain_b01_z010") == "site/brain_b01"
    assert INFO.group_of("brain") is None
    assert DatasetInfo("x", INFO.classes).group_of("a/b") == "a/b"


def test_the_manifest_alone_tells_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "manifest.parquet"
    write_manifest(path, pa.Table.from_pylist([{"id": "a", "class_pixels": [3, 4]}], schema=manifest_schema(INFO)))
    table = read_manifest(path)
    assert table["class_pixels"].to_pylist() == [[3, 4]]
    assert manifest_info(table) == INFO


def test_other_files_are_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(path)
    path.write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_manifest(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(InputError, match="no segmill manifest"):
        read_manifest(path)
