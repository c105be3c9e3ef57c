from __future__ import annotations

from pathlib import Path

from segmill.params import read_params, set_params
from segmill.workspace import Workspace
from tasks import finetune
from tasks.stage import watch_code


def test_members_that_params_no_longer_names_are_dropped(workspace: Workspace) -> None:
    for name in ("lite0-unet", "former"):
        workspace.member(name).mkdir(parents=True)
        (workspace.member(name) / "member.json").touch()
    (workspace.members / "notes").mkdir()
    finetune.drop_former_members(workspace, read_params(workspace.params))
    assert sorted(path.name for path in workspace.members.iterdir()) == ["lite0-unet", "notes"]


def test_checkpoints_lie_under_all_that_decides_the_member(workspace: Workspace) -> None:
    watch_code(workspace)

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
    (workspace.code / "finetune").write_text("another loss")
    assert hashes()[0] != third[0]


def test_the_check_of_members_is_remembered_until_they_change(workspace: Workspace, tmp_path: Path) -> None:
    watch_code(workspace)
    params = read_params(workspace.params)
    finetune._checked(workspace).write_text(finetune._what_is_checked(workspace, params))
    assert finetune.begin_check(workspace, params) is None
    set_params(workspace.params, ["members.lite0-unet.lr=0.5"])
    assert finetune.begin_check(workspace, read_params(workspace.params)) is None
    set_params(workspace.params, ["members.lite0-unet.decoder=fpn"])
    changed = read_params(workspace.params)
    assert finetune._what_is_checked(workspace, changed) != finetune._checked(workspace).read_text()
