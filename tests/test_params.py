from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.errors import InputError
from segmill.params import parse_params, read_params
from segmill.params_change import set_params
from segmill.workspace import template


@pytest.fixture
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(template("params.yaml").read_text())
    return loaded


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(template("params.yaml").read_text())
    return path


def test_the_template_is_valid_and_has_three_members(file: Path) -> None:
    params = read_params(file)
    assert len(params.members) == 3
    assert params.prepare.size_px == (192, 160)


def test_the_promotion_block_of_earlier_releases_is_valid(values: dict[str, Any]) -> None:
    earlier = {"floor_miou": 0.4, "min_gain": 0.01, "confidence": 0.9}
    read = parse_params(values | {"promotion": earlier}, "params.yaml").promotion
    assert {key: getattr(read, key) for key in earlier} == earlier
    assert (read.rule, read.alpha, read.judgements, read.goal) == ("lifetime", 0.05, 20, "superiority")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trian": {}}, "unknown key trian; did you mean 'train'?"),
        ({"train": {"epoch": 3}}, "unknown key train.epoch; did you mean 'epochs'?"),
        ({"train": {"epochs": 0}}, "train.epochs is 0: input should be greater than or equal to 1"),
        ({"split": {"val": 0.6, "test": 0.5}}, "leave nothing to train on"),
        (
            {"members": {"a": {"backbone": "resnet18", "decoder": "fpn", "weights": "none"}}},
            "members.a.lr is missing",
        ),
        (
            {"members": {"My Net": {"backbone": "r", "decoder": "fpn", "weights": "none", "lr": 1}}},
            "small letters",
        ),
        ({"members": {}}, "members is {}"),
        ({"promotion": {"ruel": "plain"}}, "unknown key promotion.ruel; did you mean 'rule'?"),
        (
            {"promotion": {"guards": {"latency": 1.2}}},
            "unknown key promotion.guards.latency; did you mean 'latency_ratio'? (allowed here: class_loss, slices, ",
        ),
        (
            {"promotion": {"guards": {"ece": 0.1}}},
            "promotion.guards.ece (allowed here: class_loss, slices, latency_ratio, size_ratio: "
            "this version measures no other condition)",
        ),
        ({"promotion": {"guards": {"class_loss": 5}}}, "promotion.guards.class_loss is 5: input should be less than"),
        ({"promotion": {"guards": {"slices": {"weather": -1}}}}, "promotion.guards.slices.weather is -1"),
        ({"promotion": {"goal": "noninferiority", "min_gain": 0.1}}, "belongs to goal superiority; set it to 0"),
    ],
)
def test_a_fault_is_said_with_its_key(values: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r"params\.yaml") as error:
        parse_params(values | change, "params.yaml")
    assert said in str(error.value)


def test_all_faults_are_said_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        parse_params(values | {"trian": {}, "train": {"epochs": "many"}}, "params.yaml")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("third", ["  epochs: 1: 2", "data: {path: raw, remote: s3://bucket}"])
def test_broken_yaml_names_the_line(tmp_path: Path, third: str) -> None:
    """Also what DVC alone could not read."""
    path = tmp_path / "params.yaml"
    path.write_text(f"train:\n  seed: 0\n{third}\n")
    with pytest.raises(InputError, match=r"params.yaml is not YAML at line 3"):
        read_params(path)


def test_set_changes_the_value_and_keeps_the_comments(file: Path) -> None:
    changes = set_params(file, ["members.lite0-unet.lr=0.01", "prepare.size_px=[64, 96]", "train.seed=0"])
    assert changes == ["members.lite0-unet.lr: 0.003 -> 0.01", "prepare.size_px: [192, 160] -> [64, 96]"]
    assert set_params(file, ["ray.cpus_per_worker=2", "train.optimizer=sgd"]) == [
        "ray.cpus_per_worker: null -> 2", "train.optimizer: not set -> sgd"
    ]  # fmt: skip
    assert read_params(file).members["lite0-unet"].lr == 0.01
    assert read_params(file).prepare.size_px == (64, 96)
    assert "# from random weights, on purpose" in file.read_text()


def test_nothing_else_of_the_file_changes(file: Path) -> None:
    """A new key used to stand below the blank line that ends its block, and every null became an empty place."""
    before = file.read_text()
    last = "  val_every: 2               # epochs between two validation runs\n"
    assert f"{last}\n" in before and "null" in before
    set_params(file, ["train.max_minutes=5", "train.crop_size=[64, 64]"])
    assert file.read_text() == before.replace(last, f"{last}  max_minutes: 5\n  crop_size: [64, 64]\n")


def test_a_value_in_block_style_gives_way_to_one_in_flow_style(file: Path) -> None:
    """ruamel's own indentation of lists; the file that it wrote then was no YAML any more."""
    yaml = YAML()
    values = yaml.load(file.read_text())
    values["prepare"]["size_px"] = [64, 64]
    with file.open("w") as lines:
        yaml.dump(values, lines)
    set_params(file, ["prepare.size_px=[32, 32]", "mlflow.tracking_uri=sqlite:///other.db"])
    assert read_params(file).prepare.size_px == (32, 32)
    assert read_params(file).mlflow.tracking_uri == "sqlite:///other.db"
    assert "# height, width of training samples" in file.read_text()


@pytest.mark.parametrize(
    ("assignment", "lines"),
    [
        ("members={a: {backbone: resnet18, decoder: fpn, weights: package:one, lr: 0.1, loss: {ce: 1}}}",
         ["members:", "  a:", "    weights: package:one", "    loss: {ce: 1}"]),
        ("members.a={backbone: resnet18, decoder: fpn, weights: package:one, lr: 0.1}", ["    weights: package:one"]),
        ("data={path: raw, remote: s3://bucket/a}", ["data: {path: raw, remote: 's3://bucket/a'}"]),
        ("augment.recipe=[{transform: HorizontalFlip, p: 0.5, note: 'a:b'}]", ["note: 'a:b'"]),
    ],
)  # fmt: skip
def test_what_is_set_is_read_alike_by_dvc(file: Path, assignment: str, lines: list[str]) -> None:
    """Its reader is libyaml, which takes no plain text with a colon in braces."""
    set_params(file, [assignment])
    assert YAML(typ="safe").load(file.read_text()) == YAML().load(file.read_text())
    written = file.read_text()
    assert all(line in written for line in lines)
    set_params(file, ["data.remote=s3://bucket/b"])
    assert YAML(typ="safe").load(file.read_text())["data"]["remote"] == "s3://bucket/b"


def test_a_member_may_hold_keys_of_train(values: dict[str, Any]) -> None:
    member = {"backbone": "resnet18", "decoder": "fpn", "weights": "none", "lr": 0.1, "epochs": 3, "ohem": 0.5}
    params = parse_params(values | {"members": {"a": member}}, "params.yaml")
    assert params.training_of("a") == replace(params.train, epochs=3, ohem=0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ohm": 0.5}, "unknown key members.a.ohm; did you mean 'ohem'?"),
        ({"ohem": 2}, "members.a.ohem is 2: input should be less than or equal to 1"),
        ({"loss": {"cee": 1}}, "members.a.loss.cee is 'cee': input should be 'ce'"),
        ({"kind": "svn"}, "members.a.kind is 'svn': input should be 'network'"),
        ({"kind": "svm"}, "unknown key members.a.decoder"),
    ],
)
def test_a_fault_of_a_member_is_said_with_its_key(values: dict[str, Any], change: dict[str, Any], said: str) -> None:
    member = {"backbone": "resnet18", "decoder": "fpn", "weights": "none", "lr": 0.1, **change}
    with pytest.raises(InputError) as error:
        parse_params(values | {"members": {"a": member}}, "params.yaml")
    assert said in str(error.value)


def test_an_svm_needs_a_backbone_for_cnn_features_alone(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: members\.a: a backbone belongs to the features cnn"):
        parse_params(values | {"members": {"a": {"kind": "svm", "features": ["cnn"]}}}, "params.yaml")
    svm = parse_params(values | {"members": {"a": {"kind": "svm"}}}, "params.yaml").members["a"]
    assert svm.kind == "svm" and svm.features == ("colour", "texture", "spatial")


@pytest.mark.parametrize("assignment", ["train.epochs", "train.epoch=3", "train.epochs=-1", "train.epochs.x=1", "=1"])
def test_a_wrong_assignment_leaves_the_file_alone(file: Path, assignment: str) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match="--set"):
        set_params(file, [assignment])
    assert file.read_bytes() == before


def test_keys_that_dvcs_run_cache_overlooks_are_refused(values: dict[str, Any]) -> None:
    recipe = [{"RandomResizedCrop": {"size": [64, 64]}}]
    with pytest.raises(InputError, match=r"augment\.recipe\.RandomResizedCrop\.size|RandomResizedCrop\.size.*size_px"):
        parse_params(values | {"augment": {"recipe": recipe}}, "params.yaml")
    with pytest.raises(InputError, match=r"members\.size"):
        parse_params(values | {"members": {"size": values["members"]["lite0-unet"]}}, "params.yaml")


def test_what_is_no_parameter_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^params\.yaml holds list, not blocks of keys"):
        parse_params(["train"], "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"train:\n  epochs: 3 # \xff\n")
    with pytest.raises(InputError, match=r"params\.yaml is not UTF-8 text"):
        read_params(tmp_path / "params.yaml")


def test_tiles_overlap_by_less_than_their_side(values: dict[str, Any]) -> None:
    values["prepare"] |= {"resize": "tile", "size_px": [64, 48], "overlap_px": 48}
    with pytest.raises(InputError, match=r"overlap_px 48 must be smaller than size_px \[64, 48\]"):
        parse_params(values, "params.yaml")


def test_a_fault_is_said_of_the_file_or_of_set_as_it_came_from(file: Path) -> None:
    typo = file.read_text().replace("  epochs:", "  epoch:", 1)
    file.write_text(typo)
    with pytest.raises(InputError, match=r"^params\.yaml: unknown key train\.epoch; did you mean 'epochs'\? [^\n]*$"):
        set_params(file, [])
    with pytest.raises(InputError) as both:
        set_params(file, ["train.lrr=0.1"])
    assert sorted(line.split(":")[0] for line in str(both.value).splitlines()) == ["--set", "params.yaml"]
    assert file.read_text() == typo
    file.write_text(template("params.yaml").read_text().replace("  epochs: ", "  epochs: -", 1))
    assert set_params(file, ["train.epochs=3"])[0].endswith("-> 3"), "a fault that an assignment mends is none"
