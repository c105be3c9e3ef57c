"""A workspace of release 2d2f2c2, trained there: its members are kept where nothing that decides them changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML

from flows.commands.doctor import bring_up_to_this_release as fix
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace, template
from tasks.adoption import ADOPTED, NOT_WHOLE, Differs, _compare_weights, _settings_then
from tasks.stage import bring_up_to_date, survey
from tasks.version import version

FORMER = Path(__file__).parents[1] / "end_to_end" / "workspace_2d2f2c2.tar.xz"
MEMBERS = ("finetune@net", "finetune@svm")
LIGHT = ("fingerprint", "validate", "prepare", "augment")


def unpacked(folder: Path) -> Workspace:
    """Return the workspace as 2d2f2c2 left it: 60 street scenes, a network ``net`` and a classical member ``svm``."""
    with tarfile.open(FORMER) as packed:
        packed.extractall(folder / "former", filter="data")
    return Workspace.open(folder / "former")


@pytest.fixture
def former(tmp_path: Path) -> Workspace:
    return unpacked(tmp_path)


@pytest.fixture
def fixed(former: Workspace) -> Workspace:
    fix(former.root, Console(quiet=True))
    return former


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = unpacked(tmp_path_factory.mktemp("prepared"))
    fix(workspace.root, Console(quiet=True))
    version(workspace, read_params(workspace.params))
    bring(workspace, *LIGHT)
    return workspace


@pytest.fixture
def prepared(tmp_path: Path, _prepared: Workspace) -> Workspace:
    """The workspace after this release's stages before training."""
    shutil.copytree(_prepared.root, tmp_path / "prepared", symlinks=True)
    return Workspace.open(tmp_path / "prepared")


def bring(workspace: Workspace, *stages: str) -> dict[str, tuple[str, str]]:
    """Bring stages up to date; a member that must train fails here, without Ray."""
    outcomes = [bring_up_to_date(workspace, name) for name in stages]
    return {outcome.stage: (outcome.state, outcome.why) for outcome in outcomes}


def files(folder: Path) -> dict[str, str]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def why_trained(workspace: Workspace, member: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return why the member is trained again: what its note says when training begins."""

    def begin(*arguments: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("tasks.stage.run", begin)
    with pytest.raises(NotImplementedError):
        bring_up_to_date(workspace, f"finetune@{member}")
    why: str = json.loads((workspace.progress / f"finetune@{member}.json").read_text())["why"]
    return why


def test_doctor_brings_both_files_up_to_this_release_and_nothing_runs_before(former: Workspace) -> None:
    with pytest.raises(InputError, match=r"segmill doctor --fix"):
        read_params(former.params)
    fix(former.root, Console(quiet=True))
    assert former.pipeline.read_bytes() == template("dvc.yaml").read_bytes()
    params = read_params(former.params)
    assert (params.train.grad_accum_steps, params.train.max_grad_norm, params.augment.oversample) == (2, 1.0, 0.2)
    assert {found.state for found in survey(former).values()} == {"stale"}
    assert survey(former)["finetune@net"].why.startswith("an earlier release made it")
    before = files(former.root)
    fix(former.root, Console(quiet=True))
    assert files(former.root) == before, "a second time changes nothing"


def test_an_earlier_pipeline_alone_is_refused_with_what_to_do(fixed: Workspace) -> None:
    subprocess.run(["git", "checkout", "-q", "dvc.yaml"], cwd=fixed.root, check=True)
    for look in (lambda: survey(fixed), lambda: bring_up_to_date(fixed, "fingerprint")):
        with pytest.raises(InputError, match=r"dvc.yaml is that of an earlier release; run `segmill doctor --fix`"):
            look()
    fixed.pipeline.write_text(fixed.pipeline.read_text().replace("- data.accept", "- data"))
    with pytest.raises(InputError, match=r"dvc\.yaml was changed by hand"):
        fix(fixed.root, Console(quiet=True))


def test_members_of_the_same_settings_data_and_weights_are_kept_to_the_byte(prepared: Workspace) -> None:
    before = files(prepared.members)
    assert set(bring(prepared, *MEMBERS).values()) == {("restored", ADOPTED)}
    assert files(prepared.members) == before
    assert [survey(prepared)[stage].state for stage in MEMBERS] == ["fresh", "fresh"]
    assert set(bring(prepared, *LIGHT, *MEMBERS).values()) == {("fresh", "unchanged")}, (
        "once, then it is this release's"
    )
    entry = YAML(typ="safe").load(prepared.root / "dvc.lock")["stages"]["finetune@net"]
    assert list(entry["params"]) == [".segmill/settings/finetune/net.json"]


def test_a_lost_member_comes_from_the_cache_and_a_damaged_one_is_trained(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(prepared.members)
    (prepared.member("net") / "weights.safetensors").write_bytes(b"torn")
    assert bring(prepared, "finetune@net")["finetune@net"] == ("restored", ADOPTED)
    assert files(prepared.members) == before
    md5 = hashlib.md5((prepared.member("svm") / "member.json").read_bytes(), usedforsecurity=False).hexdigest()
    cached = prepared.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes().replace(b"svm", b"svn"))
    assert NOT_WHOLE in why_trained(prepared, "svm", monkeypatch)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("train.epochs=3", "train.epochs 2 -> 3"),
        ("members.net.epochs=3", "train.epochs 2 -> 3"),
        ("train.momentum=0.8", "train.momentum 0.9 -> 0.8"),
        ("members.net.attention=se", "members.net.attention none -> se"),
        ("train.warm_start=true", "train.warm_start False -> True"),
        ("prepare.grayscale=true", "data/packed changed"),
        ("augment.seed=1", "data/augmented changed"),
        ("augment.recipe=medical", "data/augmented changed"),
    ],
)
def test_what_changed_is_named_and_trained(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch, change: str, why: str
) -> None:
    set_params(prepared.params, [change])
    block = change.partition(".")[0]
    bring(prepared, "fingerprint", *(LIGHT[LIGHT.index(block) :] if block in LIGHT else ()))
    said = why_trained(prepared, "net", monkeypatch)
    assert said == f"an earlier release made it, and it is not the same: {why}"


def test_one_other_pixel_in_train_is_other_data(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    manifest = pq.read_table(prepared.manifest).to_pydict()
    image = manifest["image"][manifest["split"].index("train")]
    path = prepared.root / read_params(prepared.params).data.path / image
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    version(prepared, read_params(prepared.params))
    bring(prepared, *LIGHT)
    assert "data/packed changed" in why_trained(prepared, "net", monkeypatch)


def test_what_params_yaml_said_wins_over_what_the_machine_chose() -> None:
    record = {
        "params": {
            "train": {"batch_size": 24, "compile": "on", "ema": 0.0, "epochs": 5},
            "member": {"kind": "network", "lr": 0.1, "heads": {}, "epochs": 5},
        }
    }
    listed = {"train": {"batch_size": "auto", "epochs": 9}, "members.net": {"lr": 0.1, "epochs": 5, "compile": "auto"}}
    assert _settings_then(listed, record, "net") == {
        "train": {"batch_size": "auto", "compile": "auto", "ema_decay": 0.0, "epochs": 5},
        "members": {"net": {"kind": "network", "lr": 0.1, "aux_heads": {}}},
    }


def test_start_weights_are_compared_by_their_bytes(fixed: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "start.pth"
    file.write_bytes(b"weights")
    set_params(fixed.params, [f"members.net.weights=file:{file}"])
    params = read_params(fixed.params)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    _compare_weights({"source": f"file:{file}", "sha256": sha256}, params, "net")
    for then in ({"source": "none", "sha256": None}, {"source": f"file:{file}", "sha256": "0" * 64}):
        with pytest.raises(Differs, match=f"its encoder began with {then['source']}"):
            _compare_weights(then, params, "net")
    set_params(fixed.params, ["members.net.weights=none"])
    with pytest.raises(Differs, match="its encoder began with champion:m/3"):
        _compare_weights({"source": "champion:m/3", "sha256": None}, read_params(fixed.params), "net")
