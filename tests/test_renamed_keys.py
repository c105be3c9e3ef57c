"""Keys of params.yaml under their former names: refused with the new one, and renamed in place on request."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows.commands.cli import app
from segmill.errors import InputError
from segmill.params import parse_params, read_params
from segmill.params_change import set_params
from segmill.renamed_keys import RENAMED, former_keys, name_now, rename_former_keys, with_new_names

NOW = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """The template with its former names, and a member that has all of them."""
    text = NOW.read_text().replace(
        "    lr: 0.003\n", "    lr: 0.003\n    heads: {boundary: 0.2}  # borders\n    ema: 0.5\n"
    )
    for block, old, new in [
        ("prepare", "crop_px", "border_crop_px"), ("augment", "balance", "oversample"), ("train", "ema", "ema_decay"),
        ("ensemble", "flips", "tta_hflip"),
    ]:  # fmt: skip
        blanks = " " * (len(new) - len(old))
        text, count = re.subn(rf"(?m)^  {new}:(.*?)(  #)", rf"  {old}:\1{blanks}\2", text)
        assert count == 1, block
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_every_new_name_is_a_key_and_no_former_name_is() -> None:
    params = read_params(NOW)
    for block in ("prepare", "augment", "train", "ensemble"):
        for former, new in RENAMED[block].items():
            assert hasattr(getattr(params, block), new) and not hasattr(getattr(params, block), former)
    assert params.members["lite0-unet"].aux_heads == {} and not hasattr(params.members["lite0-unet"], "heads")


def test_a_former_name_is_refused_with_the_new_one(former: Path) -> None:
    with pytest.raises(InputError) as error:
        read_params(former)
    said = str(error.value).splitlines()
    assert len(said) == 6
    assert (
        "params.yaml: train.ema is called train.ema_decay now; `segmill doctor --fix` renames it in params.yaml" in said
    )
    assert any(
        line.startswith("params.yaml: members.lite0-unet.heads is called members.lite0-unet.aux") for line in said
    )
    with pytest.raises(InputError, match=r"params\.yaml: prepare\.crop_px is called"):
        set_params(former, ["train.epochs=3"])


def test_set_says_what_to_write_instead(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(NOW.read_bytes())
    with pytest.raises(
        InputError, match=r"train\.ema is called train\.ema_decay now; write --set train\.ema_decay=0\.5$"
    ):
        set_params(path, ["train.ema=0.5"])
    member = "members.a={backbone: resnet18, decoder: fpn, weights: none, lr: 0.1, heads: {boundary: 1}}"
    with pytest.raises(InputError, match=r"--set: members\.a\.heads is called members\.a\.aux_heads now"):
        set_params(path, [member])
    assert path.read_bytes() == NOW.read_bytes()


def test_renaming_keeps_every_other_byte_and_twice_changes_nothing(former: Path) -> None:
    values = YAML(typ="safe").load(former.read_text())
    assert rename_former_keys(former) == [
        "prepare.crop_px is prepare.border_crop_px now",
        "augment.balance is augment.oversample now",
        "train.ema is train.ema_decay now",
        "members.lite0-unet.heads is members.lite0-unet.aux_heads now",
        "members.lite0-unet.ema is members.lite0-unet.ema_decay now",
        "ensemble.flips is ensemble.tta_hflip now",
    ]
    added = "    aux_heads: {boundary: 0.2}  # borders\n    ema_decay: 0.5\n"
    assert former.read_text() == NOW.read_text().replace("    lr: 0.003\n", f"    lr: 0.003\n{added}")
    params = read_params(former)
    assert params.training_of("lite0-unet").ema_decay == values["members"]["lite0-unet"]["ema"] == 0.5
    before = former.read_bytes()
    assert rename_former_keys(former) == [] and former.read_bytes() == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("train: {ema: 0.9, 'clip_norm': 1}\n", "train: {ema_decay: 0.9, 'max_grad_norm': 1}\n"),
        ("members: {a: {ema: 1}, b: {ema: 2}}\n", "members: {a: {ema_decay: 1}, b: {ema_decay: 2}}\n"),
        (
            "train: &t\n  ema: 0.9\nmembers:\n  a:\n    <<: *t\n",
            "train: &t\n  ema_decay: 0.9\nmembers:\n  a:\n    <<: *t\n",
        ),
        ("members:\n  a: &a {ema: 1}\n  b: *a\n", "members:\n  a: &a {ema_decay: 1}\n  b: *a\n"),
        ("prepare:\n  crop_px:   # why\n  - 1\n", "prepare:\n  border_crop_px:  # why\n  - 1\n"),
        ("train:\r\n  ema: 0.9\r\n", "train:\r\n  ema_decay: 0.9\r\n"),
        ("ema: 1\ndata: {ema: 1, flips: 2}\nmembers: {ema: {lr: 1}}\n", None),
        ("train: [ema]\nmembers: none\n", None),
        ("train: {ema: 1\n", None),
        ("", None),
    ],
)
def test_what_is_renamed_and_what_is_left_alone(tmp_path: Path, before: str, after: str | None) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(before.encode())
    assert bool(rename_former_keys(path)) == (after is not None)
    assert path.read_bytes() == (after or before).encode()


def test_a_key_under_both_names_is_for_the_user_to_decide(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  ema: 0.9\n  ema_decay: 0.99\n")
    with pytest.raises(InputError, match=r"has train\.ema and train\.ema_decay, its name now; delete one of them"):
        rename_former_keys(path)
    assert path.read_text() == "train:\n  ema: 0.9\n  ema_decay: 0.99\n"


def test_names_are_former_in_their_block_alone() -> None:
    assert name_now("members.a.heads") == "members.a.aux_heads" and name_now("train.heads") is None
    assert name_now("ema") is None and name_now("members.ema") is None and name_now("train.ema.decay") is None
    assert former_keys({"train": {"accumulate": 1, "lr": 2}, "members": None}) == {
        "train.accumulate": "train.grad_accum_steps"
    }
    assert former_keys("text") == {}


def test_recorded_values_are_read_under_the_names_of_now() -> None:
    """Members that were trained before keep in member.json what their settings were called then."""
    recorded = {"seed": 0, "window_px": [32, 32], "ema": 0.5}
    assert with_new_names("train", recorded) == {"seed": 0, "crop_size": [32, 32], "ema_decay": 0.5}
    assert with_new_names("train", with_new_names("train", recorded)) == with_new_names("train", recorded)
    assert with_new_names("svm", {"ema": 1}) == {"ema": 1}


@pytest.mark.slow
@pytest.mark.long
def test_doctor_fix_renames_says_so_and_leaves_the_rest_to_the_checks(former: Path) -> None:
    workspace = former.parent
    (workspace / "dvc.yaml").write_bytes((NOW.parent / "dvc.yaml").read_bytes())
    (workspace / ".dvc").mkdir()

    def doctor(*options: str) -> str:
        runner = CliRunner(env={"COLUMNS": "300"})
        return runner.invoke(app, ["doctor", "--workspace", str(workspace), *options]).output

    assert "fix   workspace  params.yaml: prepare.crop_px is called prepare.border_crop_px now" in doctor()
    assert "params.yaml: train.ema is train.ema_decay now" in doctor("--fix")
    again = doctor("--fix")
    assert "params.yaml:" not in again and "there is no data at" in again


def test_parse_params_names_the_source_it_was_given() -> None:
    values = YAML(typ="safe").load(NOW.read_text())
    values["train"]["early_stop"] = 3
    with pytest.raises(
        InputError, match=r"^--search x: train\.early_stop is called train\.early_stopping_patience now"
    ):
        parse_params(values, "--search x")
