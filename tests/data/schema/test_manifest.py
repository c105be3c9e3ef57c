from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmill.data.schema.manifest import (
    ClassInfo,
    DatasetInfo,
    manifest_info,
    manifest_schema,
    read_dataset_info,
    read_manifest,
    read_samples,
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
        ("name: x\n" + CLASSES + "former_classes: [a]\n", r"former_classes is \['a'\]; write former names"),
        ("name: x\n" + CLASSES + "former_classes: {c: 1}\n", "former_classes.c names 1; allowed are a, b"),
        ("name: x\n" + CLASSES + "former_classes: {c: [aa]}\n", r"names 'aa'; allowed are a, b; did you mean 'a'"),
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
        (CLASSES + "name: x\ngroup: 3\n", r"group is 3; write a regular expression in quotes, \{folder: N\}"),
        (CLASSES + "name: x\ngroup: {folders: 1}\n", "group: unknown key 'folders'.*did you mean 'folder'"),
        (CLASSES + "name: x\ngroup: {folder: 0}\n", "group.folder is 0.*1 or more"),
        (CLASSES + "name: x\ngroup: {folder: true}\n", "group.folder is True"),
        (CLASSES + "name: x\ngroup: {column: id}\n", "group.column is 'id'; name a column of samples.csv"),
        (CLASSES + "name: x\ngroup: {folder: 1, column: a}\n", "group has 2 keys; write one"),
        (CLASSES + "name: x\ngroup: {}\n", "group has 0 keys; write one"),
        (CLASSES + "name: x\ngroup: {column: a}\n", "group.column is 'a', but there is no samples.csv beside it"),
        (CLASSES + "name: x\nsamples_file: a\n", "unknown key 'samples_file'"),
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


def test_former_classes_are_read_kept_in_the_manifest_and_left_out_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(
        "name: x\n" + CLASSES + "former_classes: {thing: b, all: [a, b], gone: [], '': [b]}\n"
    )
    info = read_dataset_info(tmp_path)
    assert info.former_classes == {"thing": ("b",), "all": ("a", "b"), "gone": (), "": ("b",)}
    write_dataset_info(tmp_path, info)
    assert read_dataset_info(tmp_path) == info
    assert manifest_info(manifest_schema(info).empty_table()) == info
    write_dataset_info(tmp_path, INFO)
    assert "former" not in (tmp_path / "dataset.yaml").read_text()
    assert b"former" not in manifest_schema(INFO).metadata[b"segmill.dataset"], "manifests keep their bytes"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.yaml does not exist"):
        read_dataset_info(tmp_path)


def test_the_group_rule_names_the_group_or_nothing() -> None:
    assert INFO.group_of("site/brain_b01_z010") == "site/brain_b01"
    assert INFO.group_of("brain") is None
    assert DatasetInfo("x", INFO.classes).group_of("a/b") == "a/b"


def test_folders_name_the_group() -> None:
    info = DatasetInfo("x", INFO.classes, group={"folder": 2})
    assert info.group_of("berlin/cam1/000") == "berlin/cam1"
    assert info.group_of("berlin/cam1/day2/000") == "berlin/cam1"
    assert info.group_of("berlin/000") is None
    assert info.why_no_group("berlin/000") == (
        "its id 'berlin/000' is in fewer folders than group.folder of dataset.yaml (2)"
    )


def with_samples(folder: Path, table: str, column: str = "patient") -> Path:
    (folder / "dataset.yaml").write_text(f"name: x\n{CLASSES}group: {{column: {column}}}\n")
    (folder / "samples.csv").write_text(table)
    return folder


def test_a_column_of_samples_csv_names_the_group(tmp_path: Path) -> None:
    table = 'id,camera,patient\na/1,3,Doe\na/2,3,"Roe, R"\n\na/3,4,Doe\n'
    info = read_dataset_info(with_samples(tmp_path, table))
    assert [info.group_of(f"a/{i}") for i in (1, 2, 3, 4)] == ["Doe", "Roe, R", "Doe", None]
    assert info.why_no_group("a/4") == "samples.csv has no row with a patient for its id 'a/4'"
    write_dataset_info(tmp_path, info)
    assert read_dataset_info(tmp_path) == info
    assert "samples_file" not in (tmp_path / "dataset.yaml").read_text()


def test_another_state_of_samples_csv_is_read_afresh(tmp_path: Path) -> None:
    old = read_dataset_info(with_samples(tmp_path, "id,patient\na,Doe\n"))
    assert old.group_of("a") == "Doe"
    (tmp_path / "samples.csv").write_text("id,patient\na,Roe\n")
    assert read_dataset_info(tmp_path).group_of("a") == "Roe"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id,pateint\na,Doe\n", r"samples\.csv: line 1 has no column 'patient'.*did you mean 'pateint'"),
        ("name,patient\na,Doe\n", "line 1 is 'name,patient'; it must name the columns, one of them id"),
        ("", "line 1 is ''"),
        ("id,patient,patient\na,Doe,Roe\n", "line 1 names column 'patient' twice"),
        ("id,patient\na,Doe\nb\n", "line 3 has 1 cells, line 1 has 2"),
        ("id,patient\na,Doe\nb, \n", "line 3 leaves patient empty for 'b'"),
        ("id,patient\na,Doe\na,Roe\n", "line 3 names id 'a' again"),
        ("id,patient\n,Doe\n", "line 2 has no id"),
        ('id,patient\na,"Doe\n', "is not a UTF-8 table"),
    ],
)
def test_a_malformed_samples_csv_is_refused_by_line(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_dataset_info(with_samples(tmp_path, table))


def test_rows_of_samples_csv_come_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_bytes("\ufeffid,site\nä,1\n".encode())
    assert list(read_samples(tmp_path / "samples.csv")) == [(2, {"id": "ä", "site": "1"})]


def test_an_info_and_a_manifest_stay_small_whatever_the_set(tmp_path: Path) -> None:
    count = 20_000
    rows = "".join(f"ward{i % 7}/scan{i},patient{i // 40}\n" for i in range(count))
    info = read_dataset_info(with_samples(tmp_path, "id,patient\n" + rows))
    assert info.group_of("ward0/scan19995") is None
    assert info.group_of("ward3/scan19995") == "patient499"
    assert len(pickle.dumps(info)) < 1500
    assert pickle.loads(pickle.dumps(info)).group_of("ward0/scan0") == "patient0"
    write_manifest(tmp_path / "m.parquet", manifest_schema(info).empty_table())
    kept = manifest_info(read_manifest(tmp_path / "m.parquet"))
    assert kept == info and kept.group == {"column": "patient"}
    with pytest.raises(InputError, match=r"groups come from samples\.csv, which no manifest holds"):
        kept.group_of("ward0/scan0")


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
