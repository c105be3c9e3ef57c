"""split.sealed in a workspace: what it makes out of date, what it does not, and what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.audit import open_groups
from flows.commands.cli import app
from segmill.data.ingest.builtin import write_street
from segmill.data.schema.manifest import read_dataset_info, read_manifest, write_dataset_info
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import read_frozen
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.inputs import all_settings
from tasks.stage import bring_up_to_date, survey
from tests.tasks.test_stage import _brought, bring_light, brought, recorded_settings

__all__ = ["_brought", "brought"]


def groups_of(workspace: Workspace, split: str) -> list[str]:
    rows = read_manifest(workspace.manifest).select(["group", "split"]).to_pylist()
    return sorted({row["group"] for row in rows if row["split"] == split})


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_without_sealed_groups_the_settings_are_those_of_before_the_key(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    shares = asdict(SplitShares(params.split.val, params.split.test, params.split.seed))
    settings = all_settings(params)
    assert settings["validate"] == {"data": {"accept": []}, "split": shares}
    assert settings["evaluate"] == {"evaluate": {"overlays": params.evaluate.overlays}}


def test_sealing_a_test_group_trains_nothing_anew(brought: Workspace) -> None:
    packed, manifest = contents(brought.packed), brought.manifest.read_bytes()
    group = groups_of(brought, "test")[0]
    set_params(brought.params, [f"split.sealed=[{group}]"])
    found = survey(brought)
    assert found["validate"].why == f"split.sealed unset -> ['{group}']"
    states = {name: state for name, (state, _) in bring_light(brought).items()}
    assert states == {"fingerprint": "ran", "validate": "ran", "prepare": "fresh", "augment": "fresh"}
    assert recorded_settings(brought, "validate")["split"]["sealed"] == [group]
    assert contents(brought.packed) == packed and brought.manifest.read_bytes() == manifest
    settings = all_settings(read_params(brought.params))
    assert settings["evaluate"]["split"] == {"sealed": [group]}
    assert not any("split" in one for name, one in settings.items() if name.startswith("finetune@"))


def test_a_group_of_train_is_not_sealed(brought: Workspace) -> None:
    group = groups_of(brought, "train")[0]
    set_params(brought.params, [f"split.sealed=[{group}]"])
    bring_up_to_date(brought, "fingerprint")
    with pytest.raises(InputError, match=rf"names group '{group}', which is in train already"):
        bring_up_to_date(brought, "validate")


@pytest.mark.long
def test_a_group_that_is_named_before_it_is_added_goes_to_test(brought: Workspace, tmp_path: Path) -> None:
    """Scenes of two new groups come: the sealed one goes to test, and validate takes it."""
    more = tmp_path / "more"
    write_street(more, count=20, size=(64, 64), seed=1)
    for kind in ("images", "masks"):
        for path in sorted((more / kind).iterdir()):
            path.rename(path.with_name(path.name.replace("_s000", "_s009")))
    write_dataset_info(more, replace(read_dataset_info(more), splits={}))
    (more / "splits.csv").unlink(missing_ok=True)
    names = [f"street_s009{number}" for number in (0, 1)]
    set_params(brought.params, [f"split.sealed=[{names[1]}]"])
    add = ["data", "add", str(more), "-m", "two more", "--workspace", str(brought.root)]
    done = CliRunner().invoke(app, add)
    assert done.exit_code == 0, done.exception
    assert read_frozen(brought.root / "data" / "raw")[names[1]] == "test"
    bring_light(brought)
    assert names[1] in groups_of(brought, "test")


def test_the_audit_leaves_sealed_groups_out(brought: Workspace) -> None:
    assert open_groups(brought, read_params(brought.params)) is None
    group = groups_of(brought, "test")[0]
    set_params(brought.params, [f"split.sealed=[{group}]"])
    asked = open_groups(brought, read_params(brought.params))
    assert asked is not None and group not in asked
    assert asked | {group} == {name for split in ("train", "val", "test") for name in groups_of(brought, split)}
