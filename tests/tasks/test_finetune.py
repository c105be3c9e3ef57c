from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from segmill import tracking
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.pack import pack
from segmill.data.packing.packed import read_pack
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.promotion import registry
from segmill.promotion.champion import champion_start
from segmill.promotion.keys import make_signing_key
from segmill.training.job import Start
from segmill.workspace import Workspace
from tasks import finetune
from tasks.finetune import curves_path
from tasks.inputs import code_path, write_inputs
from tasks.stage import bring_up_to_date, run
from tasks.version import version


def test_members_that_params_no_longer_names_are_dropped(workspace: Workspace) -> None:
    for name in ("lite0-unet", "former"):
        workspace.member(name).mkdir(parents=True)
        (workspace.member(name) / "member.json").touch()
    (workspace.members / "notes").mkdir()
    finetune.drop_former_members(workspace, read_params(workspace.params))
    assert sorted(path.name for path in workspace.members.iterdir()) == ["lite0-unet", "notes"]


def test_checkpoints_lie_under_all_that_decides_the_member(workspace: Workspace) -> None:
    write_inputs(workspace, read_params(workspace.params))

    def hashes() -> list[str]:
        params = read_params(workspace.params)
        return [finetune._inputs_hash(workspace, params, name) for name in ("lite0-unet", "resnet18-linknet")]

    first = hashes()
    set_params(workspace.params, ["members.lite0-unet.lr=0.5"])
    second = hashes()
    assert (second[0] != first[0], second[1] == first[1]) == (True, True)
    set_params(workspace.params, ["train.seed=7", "ray.workers=2"])
    third = hashes()
    assert third[0] != second[0] and third[1] != second[1]
    set_params(workspace.params, ["ray.workers=1"])
    assert hashes() == third  # where it runs decides nothing
    code_path(workspace, "finetune@lite0-unet").write_text("another loss")
    assert hashes()[0] != third[0]
    params = read_params(workspace.params)
    begun = [finetune._inputs_hash(workspace, params, "lite0-unet", Start(Path(), f"m/{number}")) for number in (1, 2)]
    assert len({*begun, hashes()[0]}) == 3  # another champion to begin with is another training


def test_a_job_is_the_training_block_with_what_the_member_says_instead(workspace: Workspace) -> None:
    write_inputs(workspace, read_params(workspace.params))
    set_params(workspace.params, ["train.epochs=9", "train.max_grad_norm=0.5", "ray.cpus_per_worker=1"])
    set_params(workspace.params, ["members.lite0-unet.epochs=3", "members.lite0-unet.aux_heads={boundary: 0.4}"])
    settle_policy("none").write(_made(workspace.augmented) / "recipe.json")
    params = read_params(workspace.params)
    start = Start(Path("c"), "champion:m/2")
    job = finetune.train_job(workspace, params, "lite0-unet", Path("out"), start)
    assert (job.train.epochs, job.train.max_grad_norm, job.network.aux_heads) == (3, 0.5, {"boundary": 0.4})
    assert job.start == start
    assert finetune.train_job(workspace, params, "lite0-unet", Path("out")).start is None
    record = json.loads(json.dumps(job.record()))
    assert record["split"] == {"val": 0.15, "test": 0.15, "seed": 0}
    assert record["train"] == json.loads(json.dumps(asdict(params.training_of("lite0-unet"))))
    assert record["member"] == params.members["lite0-unet"].model_dump(), "with the keys of train that it sets"
    assert list(record["member"])[-1] == "epochs"
    assert record["augment"] == {
        "recipe": "none@1", "recipe_sha256": settle_policy("none").sha256, "extra_samples": {},
    }  # fmt: skip


def test_a_training_that_was_too_short_says_what_to_change(workspace: Workspace) -> None:
    def said(steps: int, **more: int) -> str | None:
        folder = _made(workspace.member("lite0-unet"))
        (folder / "metrics.json").write_text(json.dumps({"steps": steps, "steps_per_epoch": 632} | more))
        return finetune.shortfall(workspace, read_params(workspace.params), "lite0-unet")

    set_params(workspace.params, ["train.max_minutes=2.5", "train.batch_size=4", "prepare.resize=tile"])
    short = said(259)
    assert short is not None and "after 259 of the 632 steps of its first epoch" in short
    assert "train.max_minutes is 2.5" in short and "prepare.resize=fit" in short and "(now 4)" in short
    assert said(632) is None, "with a time budget the warm-up takes a tenth of it at most"
    set_params(workspace.params, ["train.max_minutes=null", "train.epochs=1", "train.warmup_epochs=1"])
    short = said(632)
    assert short is not None and "inside its warm-up, after 632 steps" in short and "warmup_epochs (now 1)" in short
    assert said(1264) is None
    set_params(workspace.params, ["train.schedule=onecycle"])
    assert said(632) is None, "it has no other warm-up"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_the_champions_member_is_found_where_one_may_begin_with_it(workspace: Workspace, tmp_path: Path) -> None:
    params = read_params(workspace.params)
    raw = workspace.root / params.data.path
    shares = SplitShares(params.split.val, params.split.test, params.split.seed)
    validate_dataset(raw, workspace.manifest, shares=shares)
    pack(raw, workspace.manifest, workspace.packed)
    names = list(read_pack(workspace.packed).class_names)
    uri = tracking.address(workspace.root, params.mlflow.tracking_uri)

    def look(name: str = "lite0-unet") -> Start | None:
        return champion_start(workspace, read_params(workspace.params), name, model="segmill-street")

    assert look() is None and not (workspace.root / "mlflow.db").exists()
    run = tracking.start_run(uri, "e", "r", artifacts=str(tmp_path / "artifacts"))

    def promote(classes: list[str], alias: str = registry.CHAMPION) -> None:
        ensemble = _made(tmp_path / f"{len(classes)}" / "ensemble")
        facts = {"format": 1, "classes": [{"name": name} for name in classes], "weights": {}, "flips": False}
        (ensemble / "ensemble.json").write_text(json.dumps(facts))
        member = _made(ensemble / "members" / "lite0-unet")
        (member / "member.json").write_text(json.dumps({"params": {"split": asdict(shares)}}))
        (member / "weights.safetensors").write_bytes(b"weights")
        version = registry.register(uri, run, ensemble, "segmill-street", key=make_signing_key())
        registry.set_alias(uri, "segmill-street", alias, version)

    promote(names, registry.CHALLENGER)
    assert look() is None  # none was ever promoted
    promote(names)
    found = look()
    assert found is not None and found.source == "champion:segmill-street/1"
    assert (found.folder / "weights.safetensors").read_bytes() == b"weights"
    assert look("resnet18-linknet") is None  # the champion has no such member
    set_params(workspace.params, ["split.seed=5"])
    assert look() is None  # what it was trained on may be val or test now
    set_params(workspace.params, ["split.seed=0", "split.sealed=[s01]"])
    assert look() == found, "a sealed group was in test before, too"
    promote([*names, "another"])
    assert look() is None


def test_the_check_of_members_is_remembered_until_they_change(workspace: Workspace, tmp_path: Path) -> None:
    write_inputs(workspace, read_params(workspace.params))
    params = read_params(workspace.params)
    finetune._checked(workspace).write_text(finetune._what_is_checked(workspace, params))
    assert finetune.begin_check(workspace, params) is None
    set_params(workspace.params, ["members.lite0-unet.lr=0.5"])
    assert finetune.begin_check(workspace, read_params(workspace.params)) is None
    set_params(workspace.params, ["members.lite0-unet.decoder=fpn"])
    changed = read_params(workspace.params)
    assert finetune._what_is_checked(workspace, changed) != finetune._checked(workspace).read_text()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["network", "svm"])
def test_a_kill_between_the_end_of_a_training_and_its_record_loses_nothing(
    joined: None, workspace: Workspace, kind: str
) -> None:
    """What such a kill leaves is what ``run`` leaves: all that the stage does, and no record of it."""
    yaml = YAML()
    network = {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003}
    member = {"network": network, "svm": {"kind": "svm", "features": ["colour"], "pixels": 1000, "components": 10}}
    yaml.dump({**yaml.load(workspace.params), "members": {"m": member[kind]}}, workspace.params)
    set_params(workspace.params, ["train.epochs=1", "prepare.size_px=[32, 32]"])
    params = read_params(workspace.params)
    version(workspace, params)
    for stage in ("fingerprint", "validate", "prepare", "augment"):
        bring_up_to_date(workspace, stage)
    run(workspace, "finetune@m", params)
    weights = (workspace.member("m") / "weights.safetensors").read_bytes()
    curves_path(workspace, "m").unlink()
    assert bring_up_to_date(workspace, "finetune@m").state == "ran"
    assert not curves_path(workspace, "m").exists(), "nothing was trained"
    assert (workspace.member("m") / "weights.safetensors").read_bytes() == weights
    (left,) = workspace.checkpoints.glob("m-*")
    finetune.drop_recorded_trainings(workspace, "m")
    assert not left.exists()
